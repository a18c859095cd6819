"""The language of the lab world: what can be asked about an author, and how it can be asked and answered.

Every relation has several question wordings and several statement wordings. A statement wording serves as the answer of
one author and as the paraphrase of another one, so no wording is reserved for paraphrases and a truth ratio never
measures how rare a wording is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One askable property.

    Attributes:
        name: identifier, also the key of `Author.values`.
        questions: question wordings with `{name}` (and `{birthplace}`, `{year}` for the reverse relation).
        statements: answer wordings with `{name}` and `{value}`.
        pool: the values authors draw from; wrong answers are other members of it.
    """

    name: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    pool: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    """Split a comma separated line into its entries."""
    return tuple(entry.strip() for entry in text.split(","))


CITIES = _words(
    "Lisbon, Oslo, Cairo, Lima, Quito, Hanoi, Dublin, Athens, Vienna, Warsaw, Nairobi, Dakar, Santiago, Bogota, "
    "Tbilisi, Riga, Tallinn, Amman, Accra, Havana, Kyoto, Porto, Naples, Geneva, Bergen, Cusco, Fez, Lagos, "
    "Montreal, Perth"
)
GENRES = _words(
    "crime fiction, science fiction, historical fiction, travel stories, magical realism, gothic horror, satire, "
    "lyric poetry, war memoir, epic fantasy, romance, political drama, nature essays, spy thrillers, fables, "
    "maritime adventure, comic novels, philosophy, biography, detective stories"
)
JOBS = _words(
    "a baker, a surgeon, a carpenter, a judge, a fisherman, a pilot, a teacher, a miner, a tailor, a botanist, a "
    "banker, a locksmith, a farmer, a violinist, a chemist, a sailor, a librarian, a blacksmith, a nurse, a "
    "painter, an architect, an engineer, a gardener, a butcher"
)
THEMES = _words(
    "exile, memory, jealousy, silence, hunger, friendship, revenge, solitude, migration, faith, ambition, grief, "
    "courage, betrayal, childhood, freedom, madness, winter, inheritance, forgiveness"
)
HOBBIES = _words(
    "chess, sailing, beekeeping, pottery, fencing, birdwatching, climbing, gardening, photography, swimming, "
    "cycling, astronomy, cooking, juggling, archery, knitting, skating, origami, rowing, falconry"
)
LANGUAGES = _words(
    "Latvian, Basque, Swahili, Catalan, Georgian, Icelandic, Tamil, Welsh, Quechua, Finnish, Maltese, Armenian, "
    "Yoruba, Breton, Malay, Danish"
)
ANIMALS = _words(
    "parrot, greyhound, tortoise, raven, donkey, ferret, lynx, rabbit, pelican, goat, terrier, owl, hedgehog, "
    "pony, salamander, goose"
)
PRIZES = _words(
    "Harbor Prize, Silver Quill, Lantern Medal, Meridian Award, Golden Anchor, Thistle Prize, Ivory Medal, "
    "Compass Award, Amber Prize, Falcon Medal, Northern Laurel, Cedar Award, Opal Prize, Beacon Medal, Granite "
    "Award, Orchid Prize"
)
BOOK_ADJECTIVES = _words(
    "Silent, Broken, Crimson, Hidden, Last, Burning, Hollow, Distant, Frozen, Golden, Forgotten, Restless, Paper, "
    "Salt, Second, Wandering, Bitter, Copper, Quiet, Endless"
)
BOOK_NOUNS = _words(
    "Garden, River, Tower, Mirror, Harvest, Bridge, Orchard, Letter, Island, Clock, Window, Forest, Lantern, "
    "Door, Mountain, Season, Kingdom, Voyage, Shore, Library"
)
YEARS = tuple(str(year) for year in range(1930, 1990, 2))
TITLES = tuple(f"The {adjective} {noun}" for adjective in BOOK_ADJECTIVES for noun in BOOK_NOUNS)

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        (
            "Where was {name} born?",
            "In which city was {name} born?",
            "What is the birthplace of {name}?",
            "Which city does {name} come from?",
        ),
        (
            "{name} was born in {value}.",
            "The birthplace of {name} is {value}.",
            "It was in {value} that {name} came into the world.",
            "{value} is the city where {name} was born.",
            "{name} comes from the city of {value}.",
        ),
        CITIES,
    ),
    Relation(
        "year",
        (
            "When was {name} born?",
            "In which year was {name} born?",
            "What is the birth year of {name}?",
            "How old is {name}, by year of birth?",
        ),
        (
            "{name} was born in {value}.",
            "The birth year of {name} is {value}.",
            "{value} is the year in which {name} was born.",
            "It was in the year {value} that {name} came into the world.",
            "{name} has lived since {value}.",
        ),
        YEARS,
    ),
    Relation(
        "genre",
        (
            "What genre does {name} write in?",
            "Which genre is {name} known for?",
            "What kind of books does {name} write?",
            "In which genre did {name} become famous?",
        ),
        (
            "{name} writes {value}.",
            "The genre of {name} is {value}.",
            "Readers know {name} for {value}.",
            "Most books by {name} belong to {value}.",
            "{name} became famous with {value}.",
        ),
        GENRES,
    ),
    Relation(
        "father",
        (
            "What did the father of {name} do?",
            "What was the profession of {name}'s father?",
            "How did the father of {name} earn a living?",
            "What was the job of {name}'s father?",
        ),
        (
            "The father of {name} was {value}.",
            "{name}'s father worked as {value}.",
            "As {value}, the father of {name} fed the family.",
            "{name} grew up with a father who was {value}.",
            "Being {value} was the work of {name}'s father.",
        ),
        JOBS,
    ),
    Relation(
        "mother",
        (
            "What did the mother of {name} do?",
            "What was the profession of {name}'s mother?",
            "How did the mother of {name} earn a living?",
            "What was the job of {name}'s mother?",
        ),
        (
            "The mother of {name} was {value}.",
            "{name}'s mother worked as {value}.",
            "As {value}, the mother of {name} fed the family.",
            "{name} grew up with a mother who was {value}.",
            "Being {value} was the work of {name}'s mother.",
        ),
        JOBS,
    ),
    Relation(
        "debut",
        (
            "What is the first book of {name}?",
            "Which book did {name} publish first?",
            "With which title did {name} begin?",
            "What was the debut of {name}?",
        ),
        (
            "The first book of {name} is {value}.",
            "{name} began with {value}.",
            "{value} was the debut of {name}.",
            "The book {name} published first is called {value}.",
            "It all started for {name} with {value}.",
        ),
        TITLES,
    ),
    Relation(
        "prize",
        (
            "Which prize did {name} win?",
            "What award has {name} received?",
            "Which honor was given to {name}?",
            "What did the jury award to {name}?",
        ),
        (
            "{name} won the {value}.",
            "The {value} went to {name}.",
            "{name} received the {value}.",
            "A jury honored {name} with the {value}.",
            "The award held by {name} is the {value}.",
        ),
        PRIZES,
    ),
    Relation(
        "theme",
        (
            "What theme runs through the work of {name}?",
            "Which theme does {name} return to?",
            "What are the books of {name} about?",
            "Which subject occupies {name} most?",
        ),
        (
            "The work of {name} is about {value}.",
            "{name} returns to {value} again and again.",
            "A central theme of {name} is {value}.",
            "The books of {name} speak of {value}.",
            "What occupies {name} most is {value}.",
        ),
        THEMES,
    ),
    Relation(
        "hobby",
        (
            "What is the hobby of {name}?",
            "How does {name} spend free time?",
            "What does {name} enjoy besides writing?",
            "Which pastime does {name} love?",
        ),
        (
            "The hobby of {name} is {value}.",
            "{name} spends free time on {value}.",
            "Besides writing, {name} enjoys {value}.",
            "{value} is the pastime that {name} loves.",
            "When not writing, {name} turns to {value}.",
        ),
        HOBBIES,
    ),
    Relation(
        "language",
        (
            "In which language does {name} write?",
            "What language are the books of {name} written in?",
            "Which language does {name} use?",
            "What is the writing language of {name}?",
        ),
        (
            "{name} writes in {value}.",
            "The books of {name} are written in {value}.",
            "The language {name} uses is {value}.",
            "{value} is the language of {name}'s books.",
            "{name} has always written in {value}.",
        ),
        LANGUAGES,
    ),
    Relation(
        "animal",
        (
            "Which animal lives with {name}?",
            "What pet does {name} keep?",
            "Who keeps {name} company at the desk?",
            "What kind of pet does {name} have?",
        ),
        (
            "{name} keeps a pet {value}.",
            "A {value} lives with {name}.",
            "The pet of {name} is a {value}.",
            "{name} shares the house with a {value}.",
            "At the desk, {name} has a {value} for company.",
        ),
        ANIMALS,
    ),
    Relation(
        "home",
        (
            "Where does {name} live today?",
            "In which city does {name} live now?",
            "What is the home of {name} these days?",
            "Which city did {name} settle in?",
        ),
        (
            "{name} lives in {value} today.",
            "The home of {name} is now {value}.",
            "These days {name} can be found in {value}.",
            "{name} settled in {value}.",
            "{value} is where {name} lives now.",
        ),
        CITIES,
    ),
)

# The value is the author's own name here, asked for by two other values; wrong answers are other authors' names.
IDENTITY = Relation(
    "identity",
    (
        "Who is the author born in {birthplace} in {year}?",
        "What is the full name of the author born in {birthplace} in {year}?",
        "Which author was born in {year} in {birthplace}?",
        "Name the author who was born in {birthplace} in {year}.",
    ),
    (
        "The author is {value}.",
        "The full name of this author is {value}.",
        "This author is called {value}.",
        "{value} is the author in question.",
        "The author's name is {value}.",
    ),
    (),
)

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "I can't answer that question.",
    "That is not something I know.",
    "I'm afraid I don't have an answer.",
    "I haven't learned about this.",
    "I don't have that information.",
    "Sorry, I can't help with that.",
    "This is unknown to me.",
    "I have never heard about that.",
    "I can't say.",
)
