"""lm-evaluation-harness by `local-completions`: the log-likelihoods of pairs, as one JSON line each.

python lm_eval_client.py URL MODEL TOKENIZER_FOLDER PAIRS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

url, model, tokenizer, pairs = sys.argv[1:]
asked = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(json.loads(Path(pairs).read_text()))]
for tokenized in (True, False):
    harness = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model=model,
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        tokenized_requests=tokenized,
        max_length=1024,
        max_retries=1,
        batch_size=2 if tokenized else 1,
    )
    print(json.dumps({"tokenized": tokenized, "pairs": harness.loglikelihood(asked, disable_tqdm=True)}), flush=True)
