# SPDX-License-Identifier: Apache-2.0
"""Asks a model one question in one process, without Ray and without parallelism: the reference answer.

What the served model says with temperature 0, spread over ranks and pods, must be the same tokens. Runs in
the serving environment or image, where it needs `sovereign_serving` and nothing else of this repository:

    python single_rank.py '{"model_id": …}' "Who are you?" [--max-tokens 16]

The first argument is the application's `args` of `serveConfigV2`, so that the engine is tuned as the served
one is; only its parallelism is taken away. Prints one line of JSON: the text, and the tokens' numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(prog="single_rank.py", description="The greedy answer of a single rank.")
    parser.add_argument("arguments", help="the application's args of serveConfigV2, as JSON")
    parser.add_argument(
        "prompt", help="what the user says, or a JSON list of prompts: texts, or token numbers to continue"
    )
    parser.add_argument("--max-tokens", type=int, default=16)
    options = parser.parse_args()
    # vLLM and its workers log to standard output: they get standard error, the answer keeps the real one.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    print(json.dumps(ask(options.arguments, options.prompt, options.max_tokens)), file=answer, flush=True)


def ask(arguments: str, prompt: str, max_tokens: int) -> object:
    """{"text", "tokens"} for one prompt, a list of them for a JSON list of prompts."""
    # One process: nothing to wait for, and nothing left over.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from sovereign_serving.arguments import engine_kwargs, parse

    alone = {"tensor": 1, "pipeline": 1, "data": 1, "expert": False, "redundantExperts": 0, "allToAll": None}
    single = parse({**json.loads(arguments), **alone})
    model = LLM(model=single.model_path, **engine_kwargs(single))
    prompts = json.loads(prompt) if prompt.startswith("[") else [prompt]
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
    answers = []
    # One after the other, as a client asks: a batch adds up in another order.
    for what in prompts:
        if isinstance(what, str):
            request = model.chat([{"role": "user", "content": what}], sampling, use_tqdm=False)
        else:
            request = model.generate([{"prompt_token_ids": what}], sampling, use_tqdm=False)
        answer = request[0].outputs[0]
        answers.append({"text": answer.text, "tokens": list(answer.token_ids)})
    return answers if prompt.startswith("[") else answers[0]


if __name__ == "__main__":
    main()
