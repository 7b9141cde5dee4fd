"""Every codec sits the exam of headrace.testing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.compress import COMPRESSORS
from headrace.testing.codec_exam import PARTS, CodecExam
from headrace.testing.codec_exams import EXAMS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_exam(name: str, part: Callable[[str, object, CodecExam], None]) -> None:
    part(name, COMPRESSORS[name], EXAMS[name])


def test_every_codec_has_an_exam() -> None:
    assert EXAMS.keys() == COMPRESSORS.keys()
