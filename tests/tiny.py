"""A tiny model, tokenizer and data set, made on the spot: what tests train when it is not the model that matters."""

import json
import random
import sys
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def make_model(folder: Path, seed: int = 0) -> Path:
    """A Llama with hidden size 64 and two layers, its character tokenizer and chat template, in `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.1,  # random states must be right for a resume to be exact
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(path: Path, count: int = 48, seed: int = 0, kind: str = "prompt_completion") -> Path:
    """Sums as JSON lines, of a kind that `trainers.data.row_formats` knows."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            left, right = draw.randint(0, 99), draw.randint(0, 99)
            row = _row(kind, f"{left} + {right} =", f" {left + right}", f" {left + right + 1 + left % 9}")
            file.write(json.dumps(row) + "\n")
    return path


def _row(kind: str, question: str, answer: str, wrong: str) -> dict[str, object]:
    if kind == "text":
        return {"text": question + answer}
    if kind == "chat":
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    if kind == "preference":
        return {"prompt": question, "chosen": answer, "rejected": wrong}
    if kind == "prompt":
        return {"prompt": question, "answer": answer.strip()}
    if kind == "unpaired_preference":
        good = question[0] in "13579"
        return {"prompt": question, "completion": answer if good else wrong, "label": good}
    return {"prompt": question, "completion": answer}


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL[3:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
