# SPDX-License-Identifier: GPL-2.0-only
"""What user 65534 reaches while root mounts in a directory of theirs: nothing outside of it.

Each attack is done in a private mount namespace, by ``mount_attacks.py``, at many points of time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdamon.lib.replaceable import open_directory, replaceable
from tests.support.capabilities import needs_damon_sysfs, needs_dev_fuse, needs_libfuse, needs_root
from tests.support.paths import SUPPORT

pytestmark = [pytest.mark.real, needs_dev_fuse, needs_libfuse, needs_root("mounting in these tests needs root")]


HERE = Path(__file__).parent
MOVES = ("link above", "link itself", "another directory", "removed")


#: For tests whose outcome depends on libfuse.
by_each_binding = pytest.mark.usefixtures("fuse_binding")


def attack(name: str, *arguments: str) -> Any:
    """What an attack led to."""
    private = ("unshare", "--mount", "--propagation", "private")
    words = (sys.executable, "-P", SUPPORT / "mount_attacks.py", name, os.readlink("/proc/self/ns/mnt"), *arguments)
    done = subprocess.run(
        [*private, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return json.loads(done.stdout)


VICTIM = "['tmpfs']"
DECOY = ["tmpfs", "fuse.kdamon"]


@pytest.mark.parametrize("move", MOVES)
def test_root_mounts_where_it_looked_or_nowhere(move: str) -> None:
    """Whatever the user puts in place of the directory, and whenever: nothing of root's is covered or unmounted."""
    outcomes = attack("start_disturbed", move)
    assert set(outcomes) <= {f"mounted {VICTIM} 0", f"refused {VICTIM} 0"}
    assert f"mounted {VICTIM} 0" in outcomes


@by_each_binding
def test_names_that_change_all_the_time() -> None:
    """The user runs beside root."""
    assert set(attack("exchanged_all_the_time")) <= {f"mounted {VICTIM} 0", f"refused {VICTIM} 0"}


@pytest.mark.parametrize("move", MOVES)
def test_root_unmounts_what_it_mounted(move: str) -> None:
    """It finds its own mount wherever that is by then, and never another one."""
    assert attack("stop_disturbed", move) == [f"{VICTIM} 0"]


@pytest.mark.parametrize("move", ["link above", "link itself"])
def test_a_dead_tree_is_taken_over_and_no_other_one(move: str) -> None:
    """The name of the directory comes to lead to another kdamon's dead tree."""
    assert attack("take_over_disturbed", move) == [str(DECOY)]


@by_each_binding
@pytest.mark.parametrize("move", ["link above", "link itself"])
def test_a_killed_server_leaves_no_mount_and_takes_no_other(move: str) -> None:
    """The name of its directory leads to another kdamon's dead tree by then."""
    assert [DECOY, []] == attack("killed", move)


@by_each_binding
@pytest.mark.parametrize("place", [".", "admin"])
def test_what_root_mounted_on_the_tree_stays(place: str) -> None:
    """On top of it, where the kernel would unmount that instead, and inside, where it would go along."""
    assert "tmpfs" == attack("mounted_upon", place)[-1]


def test_what_root_mounts_meanwhile_stays() -> None:
    """At whatever point of time that is."""
    assert [VICTIM] == attack("mounted_meanwhile")


@by_each_binding
def test_names_that_look_like_the_kernels_own_words() -> None:
    """Blanks, newlines, escapes, "(deleted)", and parts of a line of mountinfo."""
    assert [] == attack("odd_names")


def test_paths_longer_than_the_kernel_takes() -> None:
    """A relative name leads there; what was mounted is found again."""
    assert [0, 0] == attack("long_path")


@by_each_binding
def test_other_namespaces_get_the_mount_and_its_end() -> None:
    """Where the directory's mount is shared."""
    assert [[0, 0], [1, 1], [0, 0]] == attack("propagation")


@by_each_binding
def test_a_connection_that_root_ends_leaves_no_mount() -> None:
    """By the kernel's file for that, below /sys/fs/fuse/connections."""
    assert [] == attack("aborted")


@by_each_binding
def test_a_root_directory_whose_mount_is_out_of_sight() -> None:
    """As in a chroot environment: the kernel does not list that mount."""
    assert ["/d"] == attack("in_chroot")


def test_links_of_users_are_refused_and_roots_followed() -> None:
    """In a directory of the user, and in a sticky one."""
    theirs, shared, ours, dots, top = attack("sentences")
    assert "link is a symbolic link, and user 65534 may replace it or /mnt/home; name the directory" in theirs
    assert "theirs is a symbolic link, and user 65534 may replace it" in shared
    assert ("/mnt/safe/free", "/mnt/safe/free") == (ours, dots)
    assert "it is the root directory" in top


def test_a_users_file_system_is_not_asked_anything() -> None:
    """Its server may never answer, and root would wait for ever; by a name or a link of /proc."""
    by_name, by_link = attack("hanging_server")
    assert "cannot mount on /mnt/home/fs/d: it is in a file system that user 65534 serves" == by_name
    assert "it is in a file system that user 65534 serves" in by_link


@needs_damon_sysfs
def test_exec_covers_nothing_but_the_machines_places() -> None:
    """Root mounted a sysfs below a user's directory, whose name leads to root's files while that is closed."""
    assert [] == attack("places_elsewhere")


@pytest.mark.parametrize(
    ("owner", "mode", "child", "user"),
    [
        (0, 0o755, 65534, None),
        (65534, 0o755, 0, "user 65534"),
        (0, 0o777, 0, "every user"),
        (0, 0o1777, 0, None),
        (0, 0o1777, 65534, "user 65534"),
        (0, 0o775, 0, "group 65534"),
        (65534, 0o1777, 0, "user 65534"),
    ],
)
def test_who_may_replace_a_directory(tmp_path: Path, owner: int, mode: int, child: int, user: str | None) -> None:
    """By owner, mode and sticky bit of the directory that it is in."""
    place = tmp_path / "above" / "below" / "inmost"
    place.mkdir(parents=True)
    os.chown(place.parent, child, child)
    os.chown(place.parent.parent, owner, 65534)
    place.parent.parent.chmod(mode)
    if child:
        # Its owner may replace what is in it, too.
        place = place.parent
    directory = open_directory(str(place))
    try:
        assert replaceable(directory) == (None if user is None else (str(tmp_path / "above" / "below"), user))
    finally:
        os.close(directory)
