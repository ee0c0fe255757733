# Name the base by its digest for a build that can be repeated: --build-arg BASE=python:3.13-slim@sha256:...
ARG BASE=python:3.13-slim
FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv /opt/orchestrator && python -m venv /opt/build
COPY requirements ./requirements
RUN /opt/orchestrator/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator ./orchestrator
COPY vault ./vault
COPY workflows ./workflows
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir dist . \
 && /opt/orchestrator/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM ${BASE}
RUN useradd --system --uid 10001 --home-dir /var/lib/orchestrator --shell /usr/sbin/nologin orchestrator \
 && install -d -o orchestrator -g orchestrator -m 0700 /var/lib/orchestrator
COPY --from=build /opt/orchestrator /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER orchestrator
WORKDIR /work
ENTRYPOINT ["orchestrator"]
