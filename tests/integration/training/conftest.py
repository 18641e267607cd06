"""What the unit tests of training have; here several real workers train at once, so that they want the machine to themselves."""

from tests.training.conftest import tiny_model, videos

__all__ = ["tiny_model", "videos"]
