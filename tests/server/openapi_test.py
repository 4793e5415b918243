"""Property-based: requests made from /openapi.json find no 5xx, no undocumented status, no answer out of its schema."""

import os
import subprocess
import sys

import pytest
from conftest import FULL, serving


@pytest.mark.parametrize("keys", [False, True])
def test_openapi_is_true(tmp_path, keys):
    options = []
    arguments = []
    if keys:
        (tmp_path / "keys").write_text("a-secret-key\n")
        options = ["--api-key-file", str(tmp_path / "keys")]
        arguments = ["-H", "Authorization: Bearer a-secret-key"]
    from conftest import Served
    # The echo engine makes tokens as fast as it can: a generated stream of 16 answers with 20 alternatives a token is more than
    # a client on a busy machine reads in time, and would be cut off, which is right and no answer of its schema.
    served = Served("mock:echo?step_us=0&session_len=2048", "--max-unread-bytes", "1GiB", *options)
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
    checks += ",negative_data_rejection,unsupported_method" if not keys else ",ignored_auth"
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    done = subprocess.run([schemathesis, "run", f"{served.url}/openapi.json", "--checks", checks, "--max-examples", "400" if FULL else "20" if not keys else "4",
                           "--seed", "1", "--request-timeout", "60", "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", *arguments],
                          capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert served.process.poll() is None
    assert served.stop()[0] == 0
