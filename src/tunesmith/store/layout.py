"""Every folder and file of a store by its name, and where the user's downloads lie; knows nothing about what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = ".tunesmith"  # where a store lies beside its project, unless the project says otherwise


def user_folder() -> Path:
    """Where downloads are kept between projects: the platform's data folder of the user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("tunesmith", appauthor=False))


@dataclass(frozen=True)
class Layout:
    """The places in one store's folder. None of them need be there."""

    folder: Path

    @property
    def database(self) -> Path:
        """The tables, where they are in SQLite."""
        return self.folder / "tunesmith.db"

    @property
    def blobs(self) -> Path:
        """Uploads and results, where no bucket has them."""
        return self.folder / "blobs"

    @property
    def rejects(self) -> Path:
        """The rows of the last `collect` that have faults."""
        return self.folder / "rejects.jsonl"

    @property
    def datasets(self) -> Path:
        """Frozen versions of data."""
        return self.folder / "datasets"

    @property
    def review(self) -> Path:
        """What people are asked about rows, and what they said."""
        return self.folder / "review"

    @property
    def synthesis(self) -> Path:
        """What teachers answered, so that nothing is paid twice."""
        return self.folder / "synth"

    @property
    def judged(self) -> Path:
        """What judges said of rows."""
        return self.folder / "judged"

    @property
    def evaluations(self) -> Path:
        """Evaluations that are kept, and every answer they asked for."""
        return self.folder / "evaluations"

    @property
    def decisions(self) -> Path:
        """Experiments of `tunesmith decide`, each with its answers' evaluations."""
        return self.folder / "decisions"

    @property
    def model_digests(self) -> Path:
        """Digests of models, remembered by their files."""
        return self.evaluations / "digests"

    @property
    def parity(self) -> Path:
        """Which weights were computed alike in every way before they were deployed."""
        return self.folder / "parity"

    @property
    def openings(self) -> Path:
        """The log of openings of sealed rows."""
        return self.folder / "openings.jsonl"

    @property
    def trackers(self) -> Path:
        """What training tells trackers that write files."""
        return self.folder / "trackers"

    @property
    def overfit(self) -> Path:
        """The proof that training can learn a few rows by heart."""
        return self.folder / "overfit"

    @property
    def workers_log(self) -> Path:
        """What the server's worker processes say."""
        return self.folder / "workers.log"

    @property
    def stages(self) -> Path:
        """The results of all stages, each under its digest."""
        return self.folder / "stages"

    @property
    def anew(self) -> Path:
        """How often stages were wished anew, by the digest of the first time."""
        return self.folder / "anew.json"

    @property
    def tuning(self) -> Path:
        """Studies: their trials' folders, and the file of their database where no server has it."""
        return self.folder / "tuning"

    @property
    def adapters(self) -> Path:
        """Adapters of other folders that were deployed, by the digest of their files."""
        return self.folder / "adapters"

    @property
    def indexes(self) -> Path:
        """Passages that can be looked up, an index each under its digest."""
        return self.folder / "indexes"

    @property
    def index_names(self) -> Path:
        """What people call indexes."""
        return self.folder / "index-names.json"

    @property
    def sources(self) -> Path:
        """What URLs and queries gave."""
        return self.folder / "sources"

    def stage(self, digest: str) -> Path:
        """The result of the stage with that digest."""
        return self.stages / digest

    def job(self, number: str) -> Path:
        """The run of a fine-tuning job."""
        return self.folder / "jobs" / number

    def hosted(self, digest: str) -> Path:
        """A job that was ordered elsewhere."""
        return self.folder / "hosted" / digest
