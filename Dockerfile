# The commands in an image, with the versions of locks/; docs/cluster.md says how it is built and run.
#
#   docker build --tag=fingerprint .
#   docker build --tag=fingerprint:cuda --build-arg=DEVICE=cuda .
ARG BASE=python:3.13.15-slim-trixie
FROM ${BASE}

# cpu, cuda or tpu
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /fingerprint_jax

# Apart from the code, so that a change of that does not install everything anew.
COPY locks/${DEVICE}.txt locks/
RUN pip install --require-hashes --requirement=locks/${DEVICE}.txt

COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY fingerprint_jax fingerprint_jax/
COPY configs configs/
COPY launch launch/
RUN pip install --no-deps --no-build-isolation --editable=. \
    && pip check \
    && python -m compileall -q fingerprint_jax configs launch \
    && chmod --recursive go=rX .

# Any user may take its place (docker run --user): all that is written here goes to a home that all can write to.
ENV HOME=/tmp
USER 1000:1000
CMD ["fingerprint-train", "--help"]
