# The Tailwatch service, without torch and without root. Build: docker build -t tailwatch .
# The base is pinned by tag; to pin it by digest as well, pass --build-arg PYTHON=3.12.12-slim-bookworm@sha256:<digest>.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
# For example [postgres]: extras of tailwatch-service.
ARG EXTRAS=""
WORKDIR /src
COPY constraints.txt ./
COPY collectors collectors
COPY dashboards dashboards
COPY service service
RUN python -m venv /opt/tailwatch \
    && /opt/tailwatch/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
       ./collectors ./dashboards "./service${EXTRAS}" \
    && /opt/tailwatch/bin/pip uninstall --yes pip

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="Tailwatch" \
      org.opencontainers.image.description="Is this RL run still healthy, and if not, why?" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# A volume takes over owner and mode of the directory it first covers.
RUN groupadd --gid 10001 tailwatch \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tailwatch --shell /usr/sbin/nologin tailwatch \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/tailwatch \
       /run/tailwatch /run/tailwatch/keys /run/tailwatch/scrape /run/tailwatch/grafana
COPY --from=build /opt/tailwatch /opt/tailwatch
COPY --chmod=0755 scripts/first_start.sh /usr/local/bin/tailwatch-first-start
# malloc keeps the buffers of batches instead of returning them to the kernel after each one: measured at 1.5x the
# ingest of large batches. 32 MiB is the most that glibc accepts as the mmap threshold.
# The statistics kernel is compiled at the first start, for the processor it runs on, and kept in the volume.
ENV PATH=/opt/tailwatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=268435456 \
    MALLOC_TOP_PAD_=16777216 \
    NUMBA_CACHE_DIR=/var/lib/tailwatch/compiled \
    TAILWATCH_DATA_DIR=/var/lib/tailwatch
WORKDIR /var/lib/tailwatch
USER 10001:10001
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/readyz', timeout=4)"]
ENTRYPOINT ["tailwatch"]
CMD ["serve", "--host", "0.0.0.0"]
