"""What a user hears when the cluster goes away while a job is followed."""

from __future__ import annotations

import os

import aiohttp
import pytest
import requests

from prismrec.config import UserError
from prismrec.jobs.remote import Jobs, LostConnectionError


@pytest.mark.parametrize(
    "error", [requests.ConnectionError("refused"), aiohttp.ClientPayloadError("cut off")]
)
def test_a_lost_connection_says_that_the_job_goes_on(error: Exception) -> None:
    jobs = Jobs.__new__(Jobs)
    jobs.address = "http://127.0.0.1:8265"
    said = "was lost .*; the job goes on: `prismrec jobs logs small-1"
    with pytest.raises(LostConnectionError, match=said) as told, jobs._told("small-1"):
        raise error
    assert told.value.exit_code == os.EX_TEMPFAIL
    assert UserError("x").exit_code == 2
