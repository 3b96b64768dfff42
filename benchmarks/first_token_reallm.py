"""The first token of a model with reallm's Python API, as a short script does it; `first_token.py` measures it.

python first_token_reallm.py MODEL_FOLDER PROMPT
"""

import sys

from reallm import ReaLModel


def main() -> None:
    folder, prompt = sys.argv[1:]
    model = ReaLModel.from_pretrained(folder)
    [completion] = model.generate([prompt], max_new_tokens=1, temperature=0)
    print(completion.text, flush=True)


if __name__ == "__main__":
    main()
