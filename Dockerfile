FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/orchestrator
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator ./orchestrator
RUN /opt/orchestrator/bin/pip install --no-cache-dir '.[serve]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/orchestrator --shell /usr/sbin/nologin orchestrator \
 && install -d -o orchestrator -g orchestrator -m 0700 /var/lib/orchestrator
COPY --from=build /opt/orchestrator /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER orchestrator
WORKDIR /work
ENTRYPOINT ["orchestrator"]
