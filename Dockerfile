# The image of a node: the binary on a small Debian, run by an ordinary user.
# It builds with the plain builder and with BuildKit.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /source
# Dependencies first, in a layer of their own: only a change of these two files builds them again.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && echo 'fn main() {}' | tee src/main.rs benches/bench.rs && cargo build --release --locked
COPY src src
# Copied files keep their dates, and cargo builds again only what is younger than what it built.
RUN touch src/main.rs && cargo build --release --locked

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="tree-cache" \
      org.opencontainers.image.description="A distributed cache whose nodes form a binary tree" \
      org.opencontainers.image.licenses="MIT"
# A new volume that is mounted at /data takes over its owner. There is no VOLUME here: only the root, with DATA_DIR, needs one.
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tree-cache \
 && install -d -o tree-cache -g tree-cache -m 700 /data
COPY --from=build /source/target/release/tree-cache /usr/local/bin/
# A number, for those who check that it is not 0 and do not know the image's names.
USER 10001
# In a container the loopback address can be reached by nobody else.
ENV BIND_ADDR=0.0.0.0
# Else glibc gives threads heaps of their own, and their leavings grow for half an hour before they stop.
ENV MALLOC_ARENA_MAX=1
# Nor is a buffer for a body that never comes touched then (see docs/operating.md).
ENV MALLOC_MMAP_THRESHOLD_=1048576
EXPOSE 5000
# A node waits up to a minute for its root before it gives up, so it may be without a place for so long.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["tree-cache", "health"]
# Run it with --init: process 1 of a container ignores the signal to end unless it handles it.
CMD ["tree-cache"]
