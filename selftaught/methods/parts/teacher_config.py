"""Hyperparameters of methods whose pseudo-labels come from another trained network."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from selftaught.errors import UserError
from selftaught.method import Method, Previous


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Method.Config):
    """Hyperparameters with the name of a teacher.

    A run records where its teacher lies, and the teacher is part of the identity of a stage.
    """

    teacher: str = ""  # the trained network that gives the pseudo-labels
    part: ClassVar[Literal["classifier", "backbone", "method"]]  # what it takes of the teacher
    teachers: ClassVar[str]  # which networks can teach, for errors

    def previous(self, init: str | None) -> Previous | None:
        if not self.teacher:
            raise UserError(f"the method needs a teacher: name {self.teachers} by --method.teacher")
        return Previous(self.teacher, self.part)
