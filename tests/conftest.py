import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tiny products of these tests are slower on many threads."""
    torch.set_num_threads(1)
