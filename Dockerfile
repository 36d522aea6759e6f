# One image for both programs; each Deployment names the one that it runs. For Docker (BuildKit) and buildah.
#
# BASE may be any Debian with Python 3.11 or newer and its venv module. This one is Python's own.
ARG BASE=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b


FROM ${BASE} AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1

WORKDIR /src

# What runs has no pip inside, so the builder's is told where to install.
RUN python3 -m venv --without-pip /opt/berthmaster && python3 -m venv /opt/build

# Who has an index of their own gives its settings as the secret `pip`, which stays out of every layer.
COPY requirements-runtime.lock requirements-build.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/python -m pip --python /opt/berthmaster/bin/python install \
        --require-hashes --only-binary :all: -r requirements-runtime.lock
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/python -m pip install \
        --require-hashes --only-binary :all: -r requirements-build.lock

COPY LICENSE README.md pyproject.toml ./
COPY core core
COPY operator operator
COPY webhook webhook
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
    && /opt/build/bin/python -m pip --python /opt/berthmaster/bin/python install \
        --no-index --no-deps --find-links /dist berthmaster \
    && rm /opt/berthmaster/bin/berthmaster-sandbox


FROM ${BASE} AS root

COPY --from=build /opt/berthmaster /opt/berthmaster

# Times and bytecode are those of the commit and not of the build: the same commit gives the same files.
ARG SOURCE_DATE_EPOCH=0
RUN set -eu; \
    # A base that lacks a library is found out here and not on a cluster.
    /opt/berthmaster/bin/python -B -c \
        'import berthmaster_operator.main, berthmaster_webhook.main, berthmaster.cli.main, grpc'; \
    stdlib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"; \
    # Installers, toys and tests: nothing in the image installs, draws or tests anything.
    rm -rf "$stdlib/ensurepip" "$stdlib/idlelib" "$stdlib/tkinter" "$stdlib/turtledemo" \
        "$stdlib"/site-packages/* /usr/share/python-wheels \
        /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc*; \
    find / -xdev -depth -type d -name __pycache__ -exec rm -rf {} +; \
    find /opt/berthmaster/lib -depth -type d -name tests -exec rm -rf {} +; \
    python3 -m compileall -q --invalidation-mode unchecked-hash "$stdlib" /opt/berthmaster/lib; \
    rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /tmp/* ~/.cache; \
    # Nobody becomes somebody else in here.
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    find / -xdev -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +


# A single layer, so that what was removed is not carried along.
FROM scratch

COPY --from=root / /

# The root filesystem is read-only in a cluster, and bytecode is in the image already. The user has
# no entry in /etc/passwd, where a library would look for a home.
ENV PATH=/opt/berthmaster/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# By number, so that the kubelet can tell that it is not root.
USER 65532:65532

CMD ["kubectl-berth", "--help"]
