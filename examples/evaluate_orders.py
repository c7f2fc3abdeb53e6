"""Ask a model the held-out orders: `python examples/evaluate_orders.py MODEL [--adapter FOLDER]` prints JSON.

An answer is right when it is the expected line and nothing else. Greedy, so the same model gives the same count.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELD_OUT = Path(__file__).parent / "data" / "orders.heldout.jsonl"


def questions(path: Path, count: int) -> list[tuple[str, str]]:
    """Return the first `count` questions and answers of a prompt/completion file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    return [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]


def load(model: str, adapter: str | None) -> tuple[Any, Any]:
    """Load the model (with its adapter) and its tokenizer, ready to generate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter or model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded.eval(), tokenizer


def answers(model: Any, tokenizer: Any, asked: list[str], tokens: int, batch: int = 16) -> list[str]:
    """Return what the model writes after each question, at most `tokens` tokens."""
    import torch

    written: list[str] = []
    for start in range(0, len(asked), batch):
        chats = [[{"role": "user", "content": question}] for question in asked[start : start + batch]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        written += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in written]


def evaluate(model: str, adapter: str | None, path: Path, count: int, tokens: int) -> dict[str, Any]:
    """Return the number of right answers, and a few of the answers."""
    asked = questions(path, count)
    written = answers(*load(model, adapter), [question for question, _ in asked], tokens)
    pairs = [(question, answer, text) for (question, answer), text in zip(asked, written, strict=True)]
    return {
        "asked": len(pairs),
        "right": sum(text == answer for _, answer, text in pairs),
        "examples": [{"question": question, "answer": answer, "written": text} for question, answer, text in pairs[:5]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a name on the Hub")
    parser.add_argument("--adapter", help="a LoRA adapter's folder, such as a run's output")
    parser.add_argument("--data", type=Path, default=HELD_OUT)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="to write per answer, at most")
    args = parser.parse_args()
    print(
        json.dumps(evaluate(args.model, args.adapter, args.data, args.count, args.tokens), ensure_ascii=False, indent=2)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
