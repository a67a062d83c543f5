# Builds one image per program. PROGRAM is user-service (default), order-service or outbox-relay:
#
#   docker build --build-arg PROGRAM=outbox-relay --tag outbox-relay .

# Declared before the first FROM, so only the last FROM sees it and all images share the layers of the builder.
ARG PROGRAM=user-service

FROM rust:1.95.0-bookworm AS builder
# rdkafka-sys compiles librdkafka from C and links OpenSSL and zlib dynamically. They are installed explicitly, because
# only the large variant of the base image includes them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libssl-dev make pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# In one call, so that shared dependencies are compiled once.
RUN cargo build --release --locked -p user-service -p order-service -p outbox-relay
# The debug tables for file names and lines in backtraces are most of a program's size. Compression saves two thirds.
RUN cd target/release \
    && for program in user-service order-service outbox-relay; do \
        objcopy --compress-debug-sections=zlib "$program"; \
    done

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
# A number, because Kubernetes cannot verify that a user name is not root.
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS user-service
COPY --from=builder /src/target/release/user-service /usr/local/bin/
ENTRYPOINT ["user-service"]

FROM runtime AS order-service
COPY --from=builder /src/target/release/order-service /usr/local/bin/
ENTRYPOINT ["order-service"]

FROM runtime AS outbox-relay
COPY --from=builder /src/target/release/outbox-relay /usr/local/bin/
ENV OUTBOX_RELAY_CONFIG=/etc/outbox-relay/outbox-relay.toml
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["outbox-relay", "healthcheck"]
ENTRYPOINT ["outbox-relay"]
CMD ["run"]

FROM ${PROGRAM}
