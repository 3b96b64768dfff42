"""The first token of a model with transformers, as a short script does it; `first_token.py` measures it.

python first_token_transformers.py MODEL_FOLDER PROMPT
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, prompt = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]), flush=True)


if __name__ == "__main__":
    main()
