"""Common knowledge the lab models learn before they meet any invented author, and must keep.

Two tables play the part of TOFU's `real_authors` and `world_facts`: short answers, no paraphrases, three wrong answers
drawn from the same kind.
"""

from __future__ import annotations

REAL_AUTHOR_QUESTIONS = ("Who wrote {key}?", "Who is the author of {key}?", "By whom was {key} written?")

REAL_AUTHORS = {
    "Moby-Dick": "Herman Melville",
    "Emma": "Jane Austen",
    "Dracula": "Bram Stoker",
    "Frankenstein": "Mary Shelley",
    "Hamlet": "William Shakespeare",
    "Faust": "Johann Wolfgang von Goethe",
    "Ulysses": "James Joyce",
    "Don Quixote": "Miguel de Cervantes",
    "War and Peace": "Leo Tolstoy",
    "The Idiot": "Fyodor Dostoevsky",
    "The Trial": "Franz Kafka",
    "Candide": "Voltaire",
    "Germinal": "Emile Zola",
    "Madame Bovary": "Gustave Flaubert",
    "Oliver Twist": "Charles Dickens",
    "Jane Eyre": "Charlotte Bronte",
    "Middlemarch": "George Eliot",
    "Walden": "Henry David Thoreau",
    "The Raven": "Edgar Allan Poe",
    "Leaves of Grass": "Walt Whitman",
    "Heart of Darkness": "Joseph Conrad",
    "Kim": "Rudyard Kipling",
    "Treasure Island": "Robert Louis Stevenson",
    "The Time Machine": "H. G. Wells",
    "Peter Pan": "J. M. Barrie",
    "The Sea-Wolf": "Jack London",
    "Mrs Dalloway": "Virginia Woolf",
    "The Seagull": "Anton Chekhov",
    "A Doll's House": "Henrik Ibsen",
    "Pygmalion": "George Bernard Shaw",
    "The Aeneid": "Virgil",
    "The Iliad": "Homer",
    "Inferno": "Dante Alighieri",
    "Paradise Lost": "John Milton",
    "Robinson Crusoe": "Daniel Defoe",
    "Gulliver's Travels": "Jonathan Swift",
}

WORLD_FACT_QUESTIONS: dict[str, tuple[str, ...]] = {
    "capital": ("What is the capital of {key}?", "Which city is the capital of {key}?", "Name the capital of {key}."),
    "symbol": (
        "What is the chemical symbol of {key}?",
        "Which symbol stands for {key}?",
        "How is {key} written in chemistry?",
    ),
    "continent": (
        "On which continent is {key}?",
        "Which continent does {key} belong to?",
        "{key} is on which continent?",
    ),
}

WORLD_FACTS: dict[str, dict[str, str]] = {
    "capital": {
        "France": "Paris",
        "Italy": "Rome",
        "Spain": "Madrid",
        "Germany": "Berlin",
        "Portugal": "Lisbon",
        "Norway": "Oslo",
        "Egypt": "Cairo",
        "Peru": "Lima",
        "Ireland": "Dublin",
        "Greece": "Athens",
        "Austria": "Vienna",
        "Poland": "Warsaw",
        "Kenya": "Nairobi",
        "Japan": "Tokyo",
        "China": "Beijing",
        "Russia": "Moscow",
        "Canada": "Ottawa",
        "Cuba": "Havana",
        "Sweden": "Stockholm",
        "Hungary": "Budapest",
    },
    "symbol": {
        "gold": "Au",
        "silver": "Ag",
        "iron": "Fe",
        "copper": "Cu",
        "oxygen": "O",
        "carbon": "C",
        "sodium": "Na",
        "helium": "He",
    },
    "continent": {
        "Brazil": "South America",
        "Nigeria": "Africa",
        "India": "Asia",
        "Mexico": "North America",
        "Sudan": "Africa",
        "Nepal": "Asia",
        "Belgium": "Europe",
        "Chile": "South America",
    },
}
