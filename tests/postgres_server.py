"""A PostgreSQL server with pgvector for a test, of the system or of the package pgserver."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


def installation() -> Path | None:
    """The bin folder of a PostgreSQL that has pgvector, or None."""
    package = importlib.util.find_spec("pgserver")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if package is not None:
        folders.append(Path(package.submodule_search_locations[0]) / "pginstall" / "bin")
    for folder in folders:
        if (folder / "pg_config").exists() and (folder / "initdb").exists():
            asked = [str(folder / "pg_config"), "--sharedir"]
            share = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            if (Path(share) / "extension" / "vector.control").exists():
                return folder
    return None


@contextlib.contextmanager
def serving(binaries: Path, folder: Path) -> Iterator[str]:
    """The connection string of a server whose data is in `folder`, an empty one."""
    as_user = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        as_user = {"user": "nobody", "env": {**os.environ, "HOME": str(folder)}}
        if "pginstall" in binaries.parts:
            # The environment may be root's alone; the libraries lie beside the package.
            root = binaries.parents[2]
            for name in (Path("pgserver", "pginstall"), Path("pgserver.libs")):
                shutil.copytree(root / name, folder / "packages" / name)
            binaries = folder / "packages" / "pgserver" / "pginstall" / "bin"
        shutil.chown(folder, "nobody")
    data, quiet = folder / "data", {"stdout": subprocess.DEVNULL, **as_user}
    made = [binaries / "initdb", "--no-sync", "--auth=trust", "--username=test", data]
    subprocess.run(made, check=True, **quiet)
    options = f"-F -c listen_addresses='' -c unix_socket_directories='{folder}'"
    control = [binaries / "pg_ctl", f"--pgdata={data}", "--wait"]
    log = f"--log={folder / 'log'}"
    subprocess.run([*control, "start", log, f"--options={options}"], check=True, **quiet)
    try:
        yield f"host={folder} user=test dbname=postgres"
    finally:
        subprocess.run([*control, "stop", "--mode=immediate"], check=True, **quiet)
