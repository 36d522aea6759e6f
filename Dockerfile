# One image for both programs; each Deployment names the one that it runs.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src

# What runs has no pip inside, so this one is told where to install.
COPY requirements-runtime.lock ./
RUN python -m venv --without-pip /opt/berthmaster
RUN python -m pip --python /opt/berthmaster/bin/python install \
    --require-hashes --only-binary :all: -r requirements-runtime.lock

COPY requirements-build.lock ./
RUN python -m venv /opt/build
RUN /opt/build/bin/python -m pip install --require-hashes -r requirements-build.lock

COPY LICENSE README.md pyproject.toml ./
COPY core core
COPY operator operator
COPY webhook webhook
COPY sandbox sandbox
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist
RUN python -m pip --python /opt/berthmaster/bin/python install \
    --no-index --no-deps --find-links /dist berthmaster


FROM python:3.13-slim

COPY --from=build /opt/berthmaster /opt/berthmaster

# The root filesystem is read-only in a cluster, and bytecode is in the image already.
ENV PATH=/opt/berthmaster/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# By number, so that the kubelet can tell that it is not root.
USER 65532:65532

CMD ["kubectl-berth", "--help"]
