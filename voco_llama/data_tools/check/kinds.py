"""The kinds of problems that `data check` names.

An error is what a training refuses: it stops there, or passes over the record with `data.skip_bad_records`. A note is
what it takes as it is, and somebody may want to know.
"""

from dataclasses import dataclass

ERRORS = {
    "unreadable_record": "its bytes, its JSON or its columns are broken",
    "wrong_type": "a part is missing or is not what it should be",
    "no_turns": "the conversation is empty",
    "roles": "user and assistant do not take turns, or a role is unknown",
    "empty_answer": "an answer without text",
    "mark_in_answer": "an <image> mark in an answer",
    "missing_mark": "fewer <image> marks than images or clips",
    "too_many_marks": "more <image> marks than images or clips",
    "no_media_folder": "names an image, but the source has no media_folder",
    "bad_file_name": "a file name that is empty or leads out of the folder",
    "missing_file": "an image or a clip that is not there",
    "empty_file": "an image or a clip of zero bytes",
    "undecodable": "an image or a clip that is corrupt, truncated, too large, or something else",
    "image_cut": "cutting it to data.max_length would cut an image",
    "no_answer_left": "cutting it to data.max_length would leave no answer",
}
NOTES = {
    "cut": "longer than data.max_length: the end of its text is cut",
    "other_format": "an image of another format than its name says",
    "special_token_text": "text that spells out a special token; it is read as text",
    "duplicate": "the same conversation on the same media as an earlier record",
    "repeated_id": "an id that records of different content share",
}


def is_note(kind: str) -> bool:
    """Whether a training takes such a record; a kind that is not listed is an error."""
    return kind in NOTES


@dataclass(frozen=True)
class Problem:
    """Something about one record.

    Attributes:
        source: Number of the data source.
        record: Its index in the source, from 0.
        id: Its own id, where it could be read.
        message: One line: file, record, what is wrong, what to do.
    """

    kind: str
    source: int
    record: int
    id: str | None
    message: str

    @property
    def place(self) -> tuple[int, int]:
        """What problems are ordered by."""
        return self.source, self.record
