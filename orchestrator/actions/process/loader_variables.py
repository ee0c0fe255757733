"""Which environment variables an author may not set: those that make a program run what nobody was shown.

The rule: a variable that tells the dynamic linker, an interpreter, a virtual machine or a common tool to load or start
something else is refused, by the beginning of its name where a family is meant. What a variable merely points to as
data (`HOME`, `TZ`, `PGHOST`) is not; policies see the names of all that are set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FAMILIES = (
    r"LD_|DYLD_|GCONV_PATH$|GLIBC_TUNABLES$|NLSPATH$",  # the linker and the C library
    r"BASH_|BASHOPTS$|SHELLOPTS$|ENV$|IFS$|PS4$|PROMPT_COMMAND$|ZDOTDIR$|FPATH$",  # shells
    r"PYTHON|PERL|RUBY|GEM_|BUNDLE_|NODE_|NPM_CONFIG_|PHPRC$|PHP_INI_SCAN_DIR$|LUA_|TCLLIBPATH$|R_|GUILE_|ERL_|ELIXIR_",
    r"_?JAVA_|JDK_|CLASSPATH$|DOTNET_|CORECLR_|COR_|COMPLUS_|MONO_",  # virtual machines
    r"GIT_(?!AUTHOR_|COMMITTER_)|SSH_ASKPASS$|SVN_SSH$|HGRCPATH$|RSYNC_RSH$|CVS_RSH$|MAKEFLAGS$|GNUMAKEFLAGS$|MAKEFILES$",
    r"PAGER$|MANPAGER$|LESSOPEN$|LESSCLOSE$|LESSKEY|EDITOR$|VISUAL$|BROWSER$|SHELL$|TAR_OPTIONS$|SUDO_ASKPASS$",
    r"PSQLRC$|PSQL_|PGSYSCONFDIR$|PGSERVICEFILE$|CURL_HOME$|WGETRC$|OPENSSL_|SSLKEYLOGFILE$|KRB5_|GIO_|GTK_|QT_|GST_",
    r"RUSTC_|CARGO_|GOFLAGS$|CC$|CXX$|AWKPATH$|AWKLIBPATH$|TERMINFO|MALLOC_|LIBPROC_|OCAMLRUNPARAM$|CAML_LD_",
)
_REFUSED = re.compile("|".join(_FAMILIES), re.IGNORECASE)


def refused_variables(names: Iterable[str]) -> list[str]:
    """Those of these names that an author may not set, sorted."""
    return sorted(name for name in names if _REFUSED.match(name))
