"""Predicted pictures beside the true ones: the share of an error that is avoided, and examples."""

from collections.abc import Sequence

from torch import Tensor

from selftaught.method import Illustration

GREY = 0.5  # of hidden pixels, and what an untrained network predicts
SMALLEST = 1e-6  # error of a guess, of images of one colour


def avoided_share(errors: Tensor, guess_errors: Tensor) -> Tensor:
    """The share of a guess's error that each prediction avoids, [B]: below 0 it is worse."""
    return 1 - errors / guess_errors.clamp_min(SMALLEST)


def illustrate_pictures(
    inputs: Tensor, predictions: Tensor, truths: Tensor, grades: Tensor, reference: str
) -> Sequence[Illustration]:
    """Pictures [B, 3, H, W] with their grades [B]. `reference`: the guess, in words."""
    return [
        Illustration(
            pictures={"input": one, "prediction": two, "truth": three},
            text=f"error {100 * grade:.0f} % below that of {reference}",
        )
        for one, two, three, grade in zip(inputs, predictions, truths, grades.tolist(), strict=True)
    ]
