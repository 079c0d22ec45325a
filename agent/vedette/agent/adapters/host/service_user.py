"""The system user that a packaged agent runs as.

Rules: whoever types a command on a packaged host, the agent's files belong to its user. Root's commands give root up
before the first file is touched; anybody else is told to use sudo. With settings of one's own nothing of this holds.
"""

from __future__ import annotations

import os
import pwd
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from vedette.agent.domain.advice import EXIT_FAILED, EXIT_REFUSED, AdvisedError
from vedette.agent.settings import DEFAULT_FILE, Settings

SERVICE_USER = "vedette-agent"


class NotPermitted(AdvisedError):
    """The packaged agent's files are its user's, and only root may act for that one."""

    code = "not-permitted"
    exit_code = EXIT_REFUSED


def packaged_user(config: Path | None) -> pwd.struct_passwd | None:
    """Return the service user when these settings are the packaged service's, else None."""
    if config is not None and config.absolute() != DEFAULT_FILE:
        return None
    try:
        return pwd.getpwnam(SERVICE_USER) if DEFAULT_FILE.exists() else None
    except KeyError:
        return None


def check_permitted(user: pwd.struct_passwd, verb: str) -> None:
    """Check that who asks is root or the service user.

    Raises:
        NotPermitted: It is somebody else.
    """
    if os.geteuid() not in (0, user.pw_uid):
        why = f"the agent's files belong to {user.pw_name}, you are user {os.geteuid()}"
        raise NotPermitted(f"vedette-agent {verb} is for root", why, f"sudo vedette-agent {verb} …")


def become(user: pwd.struct_passwd, settings: Settings) -> None:
    """Act as the service user from now on, for ever; the state folder is made for it when it is missing."""
    if os.geteuid() == user.pw_uid:
        return
    if not settings.state_dir.exists():
        settings.state_dir.mkdir(mode=0o700, parents=True)
        os.chown(settings.state_dir, user.pw_uid, user.pw_gid)
    act_as(user)


def act_as(user: pwd.struct_passwd) -> None:
    """Act as a user from now on, for ever."""
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.umask(0o077)


def run_as(user: pwd.struct_passwd, settings: Settings, work: Callable[[], int]) -> int:
    """Return the exit code of some work that a child process does as the service user; this process stays who it is."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _end_as(user, settings, work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_as(user: pwd.struct_passwd, settings: Settings, work: Callable[[], int]) -> None:
    code = EXIT_FAILED
    try:
        become(user, settings)
        code = work()
    except BaseException:  # nothing of this process's callers may go on in the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
