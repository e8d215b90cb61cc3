"""schemathesis against the real application over a seeded store, after OpenAI's published description: examples and fuzzing phases, four
checks. TUNESMITH_OPENAI_SPEC names the description, which is no part of this repository.

    python -m benchmarks.fuzz --max-examples=20          # further words go to schemathesis
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
HEADLINES: tuple[str, ...] = ()
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    """Run it; returns schemathesis' exit code."""
    import tiny
    from benchmarks.conformance import seed
    from benchmarks.harness import peer_python
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.store import Store

    python = peer_python("schemathesis", ("schemathesis",))
    default = Path(__file__).resolve().parents[2] / "shared" / "spec" / "openai-subset.yaml"
    spec = Path(os.environ.get("TUNESMITH_OPENAI_SPEC", default))
    with tempfile.TemporaryDirectory() as folder:
        base, encoder = tiny.model(Path(folder) / "base"), tiny.encoder(Path(folder) / "encoder")
        store = Store.open(Path(folder) / "store")
        seed(store, base)
        config = ServeConfig(names={"gpt-4o-mini": str(base)}, encoders={"text-embedding-3-small": str(encoder)}, base64_embeddings=False)
        with running(create_app({"echo": EchoModel(), "gpt-5.4": EchoModel()}, config=config, store=store)) as url:
            command = [python, "-m", "schemathesis.cli", "run", str(spec), "--url", url, "--checks", CHECKS, "--phases", "examples,fuzzing"]
            command[1:3] = ["-c", "from schemathesis.cli import schemathesis; schemathesis()"]
            return subprocess.run([*command, *sys.argv[1:]], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
