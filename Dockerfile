# Build: the release binary with Swift's libraries linked in.
FROM swift:6.2-bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libpq-dev libcurl4-openssl-dev libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Package.swift ./
COPY Sources Sources
COPY sql sql
COPY Tests Tests
RUN swift build -c release --static-swift-stdlib --product outboxctl \
    && install -D "$(swift build -c release --static-swift-stdlib --show-bin-path)/outboxctl" /out/outboxctl

# Run: the two C libraries, certificates, and a user of its own.
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libpq5 libcurl4 libssl3 libxml2 ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* && useradd --system --home /var/lib/outbox --create-home outbox
COPY --from=build /out/outboxctl /usr/local/bin/outboxctl
USER outbox
WORKDIR /var/lib/outbox
ENTRYPOINT ["outboxctl"]
CMD ["run"]
