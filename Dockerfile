# One image a program; PROGRAM is user-service, which is the default, order-service or outbox-relay:
#
#   docker build --build-arg PROGRAM=outbox-relay --tag outbox-relay .

# Declared out here it is known to the last FROM only, so that all three images share every layer of the builder.
ARG PROGRAM=user-service

FROM rust:1.95.0-bookworm AS builder
# rdkafka-sys compiles librdkafka from C and links these two libraries dynamically. Named here, because only the large
# variant of the base image happens to bring them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libssl-dev make pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# In one call, because what the programs have in common is then compiled once.
RUN cargo build --release --locked -p user-service -p order-service -p outbox-relay
# Backtraces name files and lines by tables that make up most of a program; packed, they take a third of the room.
RUN cd target/release \
    && for program in user-service order-service outbox-relay; do \
        objcopy --compress-debug-sections=zlib "$program"; \
    done

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
# As a number, because Kubernetes can't tell that a name isn't root's.
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
