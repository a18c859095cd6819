"""What a recipe of a policy method says: model, problems, prompt and verifier."""

import logging
from dataclasses import dataclass, field, fields
from typing import Any

from negpo.data.problems import last_box
from negpo.data.protocols import Protocol, find_protocol
from negpo.data.rows import load_rows
from negpo.errors import ConfigError, DataError
from negpo.rewards import correctness_reward, length_reward
from negpo.rewards.noise import with_verifier_errors
from negpo.trainers._run.script_arguments import Source
from negpo.trainers._script.arguments import ModelArguments

logger = logging.getLogger(__name__)


@dataclass
class RLScriptArguments(ModelArguments):
    """What a recipe says beside the method's config: model, problems, prompt and verifier."""

    dataset: str | None = field(default=None, metadata={"help": "Problems: file, folder or Hub id."})
    dataset_names: list[str] | None = field(default=None, metadata={"help": "Configurations of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_problems: int | None = field(default=None, metadata={"help": "Use only the first so many problems."})
    question_column: str = field(default="problem", metadata={"help": "Column with the question."})
    answer_column: str = field(
        default="answer", metadata={"help": "Column with the gold answer; without it, the last box of solution."}
    )
    skip_without_answer: bool = field(
        default=False, metadata={"help": "Leave rows without a gold answer out (proofs), with a count."}
    )
    protocol: str = field(
        default="chat", metadata={"help": "Prompt and grader of a protocol card: nsr, ngrpo, nft, resrl, chat, lab."}
    )
    rollouts: str | None = field(
        default=None,
        metadata={
            "help": "Train on stored completions instead: a JSON-lines file of prompt, completion, verdict or reward, "
            "and logprobs where known (`negpo data rollouts` writes one). In the place of dataset."
        },
    )
    grader: str | None = field(default=None, metadata={"help": "Grading mode; default: the default grader."})
    overlong_buffer: int | None = field(
        default=None, metadata={"help": "DAPO's soft punishment over the last so many tokens of the limit."}
    )
    false_positives: float = field(
        default=0.0, metadata={"help": "Share of wrong answers that the verifier calls right: a study of its errors."}
    )
    false_negatives: float = field(
        default=0.0,
        metadata={"help": "Share of right answers that it calls wrong; by content and seed, the same always."},
    )

    def validate(self) -> None:
        super().validate()
        find_protocol(self.protocol)
        if self.rollouts is None:
            self.require("dataset")
            return
        defaults = {item.name: item.default for item in fields(self)}
        unread = [name for name in OF_PROBLEMS if getattr(self, name) != defaults[name]]
        if unread:
            raise ConfigError(
                f"{unread[0]}={getattr(self, unread[0])} has no effect with rollouts={self.rollouts}: prompts and "
                "verdicts stand in that file. Leave one of the two out"
            )

    def sources(self) -> dict[str, Source]:
        names = ", ".join(self.dataset_names or [])
        source = Source("problem", self.dataset, names) if self.rollouts is None else Source("rollouts", self.rollouts)
        return super().sources() | {"train_dataset": source}

    def build(self, trainer_class: Any, args: Any) -> Any:
        if self.rollouts is not None:
            return self._build_stored(trainer_class, args)
        card, tokenizer = find_protocol(self.protocol), self.tokenizer()
        if card.prompt is None and not tokenizer.chat_template:
            raise ConfigError(
                f"protocol={card.name} asks through the chat template, but the tokenizer has none; use nsr or lab"
            )
        if card.thinking is not None:
            args.chat_template_kwargs = {"enable_thinking": card.thinking} | (args.chat_template_kwargs or {})
        rewards = [correctness_reward(correct=1.0, wrong=0.0, mode=self.grader or "default")]
        if self.false_positives or self.false_negatives:
            judge = with_verifier_errors(
                rewards[0], false_positives=self.false_positives, false_negatives=self.false_negatives, seed=args.seed
            )
            rewards = [judge]
        if self.overlong_buffer:
            rewards.append(length_reward(max_tokens=args.max_completion_length, soft_tokens=self.overlong_buffer))
        return trainer_class(
            model=self.model_name_or_path,
            reward_funcs=rewards,
            args=args,
            train_dataset=problem_rows(self, card),
            processing_class=tokenizer,
            peft_config=self.peft_config(),
            **self.further(),
        )

    def _build_stored(self, trainer_class: Any, args: Any) -> Any:
        from negpo.rollout.stored import StoredRollouts

        if args.engine != "transformers":
            raise ConfigError(f"engine={args.engine} draws nothing with rollouts={self.rollouts}; leave one out")
        if args.dead_groups == "resample":
            raise ConfigError("dead_groups=resample draws other prompts; with rollouts set drop or keep")
        args.engine = "stored"
        tokenizer = self.tokenizer()
        stored = StoredRollouts.load(
            str(self.rollouts), tokenizer, samples=args.num_generations, max_tokens=args.max_completion_length
        )
        return trainer_class(
            model=self.model_name_or_path,
            reward_funcs=[stored],
            args=args,
            train_dataset=stored.rows(),
            processing_class=tokenizer,
            peft_config=self.peft_config(),
            engine=stored,
            **self.further(),
        )


ARGUMENTS = RLScriptArguments
OF_PROBLEMS = (
    *("dataset", "dataset_names", "dataset_split", "max_problems", "question_column", "answer_column"),
    *("skip_without_answer", "protocol", "grader", "overlong_buffer", "false_positives", "false_negatives"),
)


def problem_rows(script: RLScriptArguments, card: Protocol) -> list[dict[str, Any]]:
    """``prompt`` (text, or messages for a chat template) and ``answer`` of every problem.

    Raises:
        DataError: a row without question, or without a gold answer unless ``skip_without_answer``.
    """
    source, names = str(script.dataset), [*(script.dataset_names or (None,))]
    rows = [row for name in names for row in load_rows(source, name=name, split=script.dataset_split, required=())]
    problems, skipped = [], 0
    for index, row in enumerate(rows[: script.max_problems]):
        question = row.get(script.question_column)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"found fields {sorted(row)}", file=script.dataset, row=index, field=script.question_column)
        given = row.get(script.answer_column)
        gold = str(last_box(row.get("solution") or "") or "" if given in (None, "") else given)  # 0 is an answer
        gold = gold.rpartition("####")[2].strip()  # GSM8K: the number after the worked answer
        if not gold and script.skip_without_answer:
            skipped += 1
            continue
        if not gold:
            raise DataError(
                "no gold answer, and no boxed one in solution; set answer_column or skip_without_answer",
                file=script.dataset,
                row=index,
                field=script.answer_column,
            )
        problems.append({"prompt": card.ask(question), "answer": gold})
    if skipped:
        logger.warning("%d of %d rows have no gold answer and are left out", skipped, len(rows))
    return problems
