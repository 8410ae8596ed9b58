#!/usr/bin/env python3
"""Turn the published 1.11.0 scheduler binding into a runnable Mesos cluster.

Usage: build.py BUILD_DIR

The binding is one shared object with all of libmesos linked into it.  It was
made for an older Linux, so a few of the libraries it names no longer exist.
This script fetches the package by name, writes stand-ins for those libraries,
compiles host.cpp against the shared object, and leaves in BUILD_DIR:

  lib/         the shared object and the stand-ins
  bin/         mesos-master, mesos-agent, mesos-containerizer
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile

PACKAGE = "mesos.scheduler"
VERSION = "1.11.0"
ARCHIVE = "mesos.scheduler-1.11.0.linux-x86_64.tar.gz"
MEMBER_SUFFIX = "/mesos/scheduler/_scheduler.so"
LIBRARY = "libmesos_bundle.so"
# host.cpp has numbers in it that are only true for this very file.
SHA256 = "84d7ee9af27e912636b139de40257df1ee4f56c201de6bba834278aa1e8fd64c"

HERE = os.path.dirname(os.path.abspath(__file__))


def run(*argv, **kw):
    return subprocess.run(argv, check=True, text=True, **kw)


def output(*argv):
    return run(*argv, stdout=subprocess.PIPE).stdout


def fetch(into):
    """Download ARCHIVE with pip's own index client and configuration.

    pip refuses to install this kind of archive, but it lists it among the
    candidates, and its session can read it.
    """
    code = r'''
import subprocess, sys
from pip._internal.commands import create_command
from pip._internal.index.collector import LinkCollector
from pip._internal.index.package_finder import PackageFinder
from pip._internal.models.search_scope import SearchScope
from pip._internal.models.selection_prefs import SelectionPreferences
package, archive, target = sys.argv[1:4]
command = create_command("download")
options, _ = command.parse_args(["--disable-pip-version-check", "-d", ".", package])
with command.main_context():
    session = command._build_session(options)
    scope = SearchScope.create(
        find_links=options.find_links,
        index_urls=[options.index_url] + options.extra_index_urls,
        no_index=False)
    finder = PackageFinder.create(
        link_collector=LinkCollector(session=session, search_scope=scope),
        selection_prefs=SelectionPreferences(allow_yanked=True))
    # Source archives and "dumb" archives share the .tar.gz suffix, so the
    # binary one shows up here under a made-up version.
    for candidate in finder.find_all_candidates(package):
        if candidate.link.filename == archive:
            reply = session.get(candidate.link.url_without_fragment)
            reply.raise_for_status()
            with open(target, "wb") as out:
                out.write(reply.content)
            sys.exit(0)
sys.exit("the package index does not list " + archive)
'''
    os.makedirs(into, exist_ok=True)
    target = os.path.join(into, ARCHIVE)
    if not os.path.exists(target):
        part = target + ".part"
        run(sys.executable, "-c", code, PACKAGE, ARCHIVE, part)
        os.replace(part, target)
    return target


def unpack(archive, libdir):
    target = os.path.join(libdir, LIBRARY)
    if not os.path.exists(target):
        with tarfile.open(archive) as tar:
            member = next(m for m in tar if m.name.endswith(MEMBER_SUFFIX))
            with tar.extractfile(member) as source, open(target + ".part", "wb") as out:
                shutil.copyfileobj(source, out)
        os.chmod(target + ".part", 0o755)
        os.replace(target + ".part", target)
    digest = hashlib.sha256()
    with open(target, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        sys.exit("unexpected contents of %s: sha256 %s" % (target, digest.hexdigest()))
    return target


def needed_versions(library):
    """{soname: {version tag}} from the version-needs section."""
    needs, current = {}, None
    for line in output("objdump", "-p", library).splitlines():
        m = re.match(r"\s+required from (\S+):", line)
        if m:
            current = needs.setdefault(m.group(1), set())
            continue
        m = re.match(r"\s+0x[0-9a-f]+ 0x[0-9a-f]+ \d+ (\S+)", line)
        if m and current is not None:
            current.add(m.group(1))
    return needs


def undefined(library):
    """[(symbol, version tag or None)] of what the library imports."""
    found = []
    for line in output("nm", "-D", "--undefined-only", library).splitlines():
        kind, name = line.split()[-2:]
        name, _, tag = name.partition("@")
        found.append((kind, name, tag.lstrip("@") or None))
    return found


def stand_in(libdir, soname, symbols, preset="", data=()):
    """A shared library that has `symbols` ({tag or None: names}) and does nothing.

    Every function says its name and aborts, unless `preset` (C text) has it.
    """
    source = os.path.join(libdir, soname + ".c")
    script = os.path.join(libdir, soname + ".map")
    lines = ["#include <stdio.h>", "#include <stdlib.h>", preset]
    for names in symbols.values():
        for name in sorted(names):
            if re.search(r"\b%s\b" % re.escape(name), preset):
                continue
            if name in data:
                lines.append("char %s[1024];" % name)
            else:
                lines.append(
                    'void %s(void) { fprintf(stderr, "stand-in library: %s was '
                    'called\\n"); abort(); }' % (name, name))
    with open(source, "w") as out:
        out.write("\n".join(lines) + "\n")
    argv = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin",
            "-Wl,-soname," + soname, "-o", os.path.join(libdir, soname), source]
    if any(symbols):
        with open(script, "w") as out:
            for tag, names in symbols.items():
                out.write("%s { global: %s };\n" % (
                    tag, " ".join(n + ";" for n in sorted(names))))
        argv.append("-Wl,--version-script=" + script)
    run(*argv)


# Executor tokens are signed with HMAC-SHA256; these two calls have not changed
# since, so they go to whatever libcrypto the system has.
CRYPTO_PRESET = """
#define _GNU_SOURCE
#include <dlfcn.h>
static void *real(const char *name)
{
  static void *library;
  if (!library) library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcrypto.so.1.1", RTLD_NOW | RTLD_LOCAL);
  void *found = library ? dlsym(library, name) : 0;
  if (!found) { fprintf(stderr, "no %s in the system's libcrypto\\n", name); abort(); }
  return found;
}
const void *EVP_sha256(void)
{
  return ((const void *(*)(void)) real("EVP_sha256"))();
}
unsigned char *HMAC(const void *kind, const void *key, int key_length,
                    const unsigned char *data, size_t length,
                    unsigned char *out, unsigned int *out_length)
{
  return ((unsigned char *(*)(const void *, const void *, int,
                              const unsigned char *, size_t, unsigned char *,
                              unsigned int *)) real("HMAC"))(
      kind, key, key_length, data, length, out, out_length);
}
"""
CURL_PRESET = """
int curl_global_init(long flags) { return 0; }
void *curl_easy_init(void) { return 0; }
void curl_easy_cleanup(void *handle) { }
const char *curl_easy_strerror(int code) { return "no curl in this test bed"; }
int curl_easy_setopt(void *handle, int option, ...) { return 2; }
int curl_easy_perform(void *handle) { return 2; }
int curl_easy_getinfo(void *handle, int info, ...) { return 2; }
"""


def make_stand_ins(library, libdir):
    needs = needed_versions(library)
    imports = undefined(library)
    for soname, preset in (("libssl.so.1.0.0", ""),
                           ("libcrypto.so.1.0.0", CRYPTO_PRESET),
                           ("libcurl.so.4", CURL_PRESET)):
        tags = needs[soname]
        symbols = {tag: set() for tag in sorted(tags)}
        for _, name, tag in imports:
            if tag not in tags:
                continue
            # Both OpenSSL libraries use the same tags; split them by name,
            # though either would do.
            if soname.startswith("libcurl") or \
                    name.startswith(("SSL", "TLS")) == soname.startswith("libssl"):
                symbols[tag].add(name)
        # A version script may not have an empty node.
        for tag, names in symbols.items():
            if not names:
                names.add("stand_in_" + re.sub(r"\W", "_", soname + tag))
        stand_in(libdir, soname, symbols, preset)
    python = {name for kind, name, tag in imports
              if tag is None and re.match(r"_?Py", name)}
    stand_in(libdir, "libpython_stand_in.so", {None: python},
             data={"PyExc_Exception", "PyExc_TypeError", "_Py_NoneStruct"})


def make_programs(build, libdir):
    bindir = os.path.join(build, "bin")
    os.makedirs(bindir, exist_ok=True)
    host = os.path.join(bindir, "mesos-host")
    # The agent may run its launcher from a copy in memory, so the search path
    # is absolute; old-style tags make it apply to the bundle's own needs too.
    run("g++", "-std=c++14", "-O1", "-g0", "-fPIC", "-o", host, os.path.join(HERE, "host.cpp"),
        "-Wl,--no-as-needed", os.path.join(libdir, "libpython_stand_in.so"),
        os.path.join(libdir, LIBRARY), "-Wl,--allow-shlib-undefined",
        "-Wl,--disable-new-dtags", "-Wl,-rpath," + libdir, "-lpthread")
    for name in ("mesos-master", "mesos-agent", "mesos-containerizer"):
        link = os.path.join(bindir, name)
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink("mesos-host", link)


def main():
    build = os.path.abspath(sys.argv[1])
    libdir = os.path.join(build, "lib")
    os.makedirs(libdir, exist_ok=True)
    library = unpack(fetch(os.path.join(build, "download")), libdir)
    make_stand_ins(library, libdir)
    make_programs(build, libdir)


if __name__ == "__main__":
    main()
