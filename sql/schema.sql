column attempt.event_id bigint not null
column attempt.event_at timestamp with time zone not null
column attempt.endpoint_id uuid not null
column attempt.number integer not null
column attempt.trigger text not null
column attempt.lease_id uuid not null
column attempt.worker text not null
column attempt.started_at timestamp with time zone not null
column attempt.dns_us integer
column attempt.connect_us integer
column attempt.tls_us integer
column attempt.first_byte_us integer
column attempt.total_us integer not null
column attempt.outcome text not null
column attempt.status integer
column attempt.error_class text
column attempt.error text
column attempt.response bytea
column attempt.request_id text
column attempts.event_id bigint
column attempts.webhook_id text
column attempts.endpoint_id uuid
column attempts.endpoint text
column attempts.number integer
column attempts.trigger text
column attempts.started_at timestamp with time zone
column attempts.outcome text
column attempts.status integer
column attempts.error_class text
column attempts.error text
column attempts.dns_us integer
column attempts.connect_us integer
column attempts.tls_us integer
column attempts.first_byte_us integer
column attempts.total_us integer
column attempts.request_id text
column attempts.worker text
column attempts.lease_id uuid
column attempts.created_at timestamp with time zone
column audit.id bigint not null
column audit.at timestamp with time zone not null default clock_timestamp()
column audit.actor text not null
column audit.session text not null
column audit.action text not null
column audit.object text not null
column audit.reason text
column audit.detail jsonb not null default '{}'::jsonb
column backlog.stage text
column backlog.endpoint_id uuid
column backlog.endpoint text
column backlog.waiting bigint
column backlog.oldest_at timestamp with time zone
column batch.id bigint not null
column batch.ids int8multirange not null
column batch.size integer not null
column batch.first_at timestamp with time zone not null
column batch.last_at timestamp with time zone not null
column batch.customer_id text
column batch.turn bigint not null default 0
column batch.ordered uuid[] not null default '{}'::uuid[]
column batch.claims integer not null default 0
column batch.lease_id uuid
column batch.worker text
column batch.lease_until timestamp with time zone not null default '-infinity'::timestamp with time zone
column boot.singleton boolean not null default true
column boot.mark uuid not null default gen_random_uuid()
column closed.before timestamp with time zone not null
column cut.id bigint not null
column cut.done pg_snapshot not null
column cut.large xid8[] not null default '{}'::xid8[]
column cut.at_id bigint not null default 0
column cut.large_pass bigint[] not null default '{}'::bigint[]
column cut.pass bigint
column cut.unreleased bigint
column cut.release_to bigint
column cut.release_endpoint uuid
column cut.release_key text
column cut.release_next bigint
column cut.behind outbox.lane_place[] not null default '{}'::outbox.lane_place[]
column cut.turn bigint not null default 0
column cut.last_turn bigint not null default 0
column cut.first_turn bigint not null default 0
column cut.first_id bigint not null default 0
column dead_letter.event_id bigint not null
column dead_letter.endpoint_id uuid not null
column dead_letter.event_at timestamp with time zone not null
column dead_letter.reason text not null
column dead_letter.attempts integer not null
column dead_letter.status integer
column dead_letter.error_class text
column dead_letter.error text
column dead_letter.fingerprint text not null
column dead_letter.dead_at timestamp with time zone not null default clock_timestamp()
column dead_letter.ordering_key text
column dead_letter.pass bigint not null default 0
column dead_letters.id text
column dead_letters.event_id bigint
column dead_letters.webhook_id text
column dead_letters.endpoint_id uuid
column dead_letters.endpoint text
column dead_letters.customer_id text
column dead_letters.event_type text
column dead_letters.change_type text
column dead_letters.transaction_id uuid
column dead_letters.reason text
column dead_letters.attempts integer
column dead_letters.status integer
column dead_letters.error_class text
column dead_letters.error text
column dead_letters.fingerprint text
column dead_letters.dead_at timestamp with time zone
column dead_letters.created_at timestamp with time zone
column dedup.producer text not null
column dedup.customer_id outbox.customer_id not null
column dedup.key text not null
column dedup.event_id bigint not null
column dedup.created_at timestamp with time zone not null default clock_timestamp()
column deliveries.id text
column deliveries.event_id bigint
column deliveries.webhook_id text
column deliveries.endpoint_id uuid
column deliveries.endpoint text
column deliveries.customer_id text
column deliveries.event_type text
column deliveries.change_type text
column deliveries.transaction_id uuid
column deliveries.state text
column deliveries.attempts integer
column deliveries.trigger text
column deliveries.due_at timestamp with time zone
column deliveries.last_at timestamp with time zone
column deliveries.last_status integer
column deliveries.last_error_class text
column deliveries.last_error text
column deliveries.reason text
column deliveries.created_at timestamp with time zone
column delivery.event_id bigint not null
column delivery.endpoint_id uuid not null
column delivery.event_at timestamp with time zone not null
column delivery.due_at outbox.time_or_none not null
column delivery.attempts integer not null default 0
column delivery.crashes integer not null default 0
column delivery.trigger text not null
column delivery.last_at timestamp with time zone
column delivery.last_status integer
column delivery.last_error_class text
column delivery.last_error text
column delivery.ordering_key text
column delivery.deliver_at timestamp with time zone
column delivery.pass bigint not null default 0
column endpoint.id uuid not null default gen_random_uuid()
column endpoint.name text not null
column endpoint.customer_id text not null default '*'::text
column endpoint.description text
column endpoint.event_types jsonb not null default '[{"kind": "any"}]'::jsonb
column endpoint.change_types jsonb not null default '[{"kind": "any"}]'::jsonb
column endpoint.filter text
column endpoint.url text not null
column endpoint.url_parameters boolean not null default false
column endpoint.method text not null default 'POST'::text
column endpoint.format text not null default 'standard'::text
column endpoint.template text
column endpoint.template_kind text not null default 'json'::text
column endpoint.headers jsonb not null default '[]'::jsonb
column endpoint.authentication jsonb not null default '{"kind": "none"}'::jsonb
column endpoint.ca_certificates text
column endpoint.client_certificate text
column endpoint.http2 boolean not null default false
column endpoint.max_body_bytes integer
column endpoint.response_rules jsonb not null default '{}'::jsonb
column endpoint.timeout interval not null default '00:00:15'::interval
column endpoint.connect_timeout interval not null default '00:00:05'::interval
column endpoint.retry_schedule interval[] not null default '{00:00:05,00:00:30,00:02:00,00:10:00,00:30:00,01:00:00,03:00:00,06:00:00,12:00:00,24:00:00,24:00:00}'::interval[]
column endpoint.max_in_flight integer not null default 128
column endpoint.max_concurrency integer
column endpoint.rates text[] not null default '{}'::text[]
column endpoint.ordered boolean not null default false
column endpoint.on_dead text not null default 'block'::text
column endpoint.disabled_at timestamp with time zone
column endpoint.disabled_reason text
column endpoint.deleted_at timestamp with time zone
column endpoint.revision bigint not null default 1
column endpoint.changed_tx xid8 not null default pg_current_xact_id()
column endpoint.created_at timestamp with time zone not null default clock_timestamp()
column endpoint.updated_at timestamp with time zone not null default clock_timestamp()
column endpoint_document.id uuid
column endpoint_document.name text
column endpoint_document.customer_id text
column endpoint_document.event_types jsonb
column endpoint_document.change_types jsonb
column endpoint_document.ordered boolean
column endpoint_document.deleted_at timestamp with time zone
column endpoint_document.document jsonb
column endpoint_document.masked jsonb
column endpoint_health.endpoint_id uuid
column endpoint_health.endpoint text
column endpoint_health.customer_id text
column endpoint_health.state text
column endpoint_health.state_reason text
column endpoint_health.failing_since timestamp with time zone
column endpoint_health.paused_from timestamp with time zone
column endpoint_health.paused_until timestamp with time zone
column endpoint_health.resting_until timestamp with time zone
column endpoint_health.waiting bigint
column endpoint_health.oldest_at timestamp with time zone
column endpoint_health.dead_letters bigint
column endpoint_health.attempts_5m bigint
column endpoint_health.successes_5m bigint
column endpoint_health.last_success_at timestamp with time zone
column endpoint_health.last_failure_at timestamp with time zone
column endpoint_state.endpoint_id uuid
column endpoint_state.endpoint text
column endpoint_state.customer_id text
column endpoint_state.state text
column endpoint_state.state_reason text
column endpoint_state.failing_since timestamp with time zone
column endpoint_state.paused_from timestamp with time zone
column endpoint_state.paused_until timestamp with time zone
column endpoint_state.resting_until timestamp with time zone
column event.id bigint not null
column event.tx xid8 not null default pg_current_xact_id()
column event.created_at timestamp with time zone not null default clock_timestamp()
column event.customer_id outbox.customer_id not null default 'default'::text
column event.type outbox.event_type not null
column event.change_type outbox.change_type not null default 'Create'::text
column event.transaction_id uuid not null default outbox.current_transaction_id()
column event.identity outbox.identity default outbox.current_identity()
column event.before outbox.body
column event.after outbox.body
column event.occurred_at outbox.event_time
column event.ordering_key outbox.ordering_key
column event.deliver_at outbox.event_time
column event.headers outbox.headers not null default '{}'::jsonb
column ghost.event_id bigint not null
column ghost.event_at timestamp with time zone not null
column ghost.noted_at timestamp with time zone not null default clock_timestamp()
column ghost.worker text not null
column granted.role name
column granted.kind text
column granted.object text
column granted.column_name text
column granted.privilege text
column grants.role name
column grants.kind text
column grants.object text
column grants.column_name text
column grants.privilege text
column lane.endpoint_id uuid not null
column lane.due_at outbox.time_or_none not null default 'infinity'::timestamp with time zone
column lane.resting_until outbox.time_or_none not null default '-infinity'::timestamp with time zone
column lane.paused_from outbox.time_or_none not null default '-infinity'::timestamp with time zone
column lane.paused_until outbox.time_or_none not null default '-infinity'::timestamp with time zone
column lane.pause_reason text
column lane.paused_by text
column lane.drain_rate text
column lane.trips integer not null default 0
column lane.failing_since outbox.time_or_none
column lane.recovered_at outbox.time_or_none
column lane.claims integer not null default 0
column lane.lease_id uuid
column lane.worker text
column lane.lease_until timestamp with time zone not null default '-infinity'::timestamp with time zone
column lane.changed_tx xid8 not null default pg_current_xact_id()
column migration.version integer not null
column migration.name text not null
column migration.checksum text not null
column migration.applied_at timestamp with time zone not null default clock_timestamp()
column ordered_type.kind text not null
column ordered_type.text text not null
column ordered_type.customer_id text not null
column ordered_type.endpoint_id uuid not null
column partitions.parent name
column partitions.oid oid
column partitions.name name
column partitions.lower timestamp with time zone
column partitions.upper timestamp with time zone
column problems.problem text
column problems.detail text
column problems.fix text
column producer_customer.role name not null
column producer_customer.role_oid oid not null
column producer_customer.customer_id outbox.customer_id not null
column secret.id uuid not null default gen_random_uuid()
column secret.endpoint_id uuid not null
column secret.kind text not null
column secret.key_id text not null
column secret.sealed bytea not null
column secret.created_at timestamp with time zone not null default clock_timestamp()
column secret.expires_at outbox.time_or_none not null default 'infinity'::timestamp with time zone
column setting.singleton boolean not null default true
column setting.instance text not null default "left"(replace((gen_random_uuid())::text, '-'::text, ''::text), 8)
column setting.cluster bigint not null default outbox.cluster_identifier()
column setting.database bigint not null default outbox.database_identifier()
column setting.partition_unit text not null default 'day'::text
column setting.event_retention interval not null default '30 days'::interval
column setting.attempt_retention interval not null default '30 days'::interval
column stray.tx xid8 not null
column stray.id bigint not null
column stray.created_at timestamp with time zone not null
column stray.customer_id text not null
column stray.bytes integer not null
column timeline.cluster bigint not null default outbox.cluster_identifier()
column timeline.database bigint not null default outbox.database_identifier()
column timeline.timeline integer not null default outbox.current_timeline()
column timeline.noted_at timestamp with time zone not null default clock_timestamp()
column transactions.transaction_id uuid
column transactions.first_at timestamp with time zone
column transactions.last_at timestamp with time zone
column transactions.events bigint
column transactions.customers text[]
column transactions.event_types text[]
column transactions.identities text[]
column unrouted.event_id bigint not null
column unrouted.endpoint_id uuid not null
column unrouted.event_at timestamp with time zone not null
column unrouted.ordering_key text
column unrouted.deliver_at timestamp with time zone
column unrouted.pass bigint not null
column unrouted.noted_at timestamp with time zone not null default clock_timestamp()
column worker.id text not null
column worker.version text not null
column worker.host text not null
column worker.pid integer not null
column worker.started_at timestamp with time zone not null default clock_timestamp()
column worker.heartbeat_at timestamp with time zone not null default clock_timestamp()
column worker.complaints jsonb not null default '[]'::jsonb
constraint attempt attempt_outcome_check CHECK ((outcome = ANY (ARRAY['success'::text, 'failure'::text])))
constraint attempt attempt_trigger_check CHECK ((trigger = ANY (ARRAY['first'::text, 'retry'::text, 'replay'::text, 'test'::text, 'evaluate'::text])))
constraint audit audit_pkey PRIMARY KEY (id)
constraint batch batch_pkey PRIMARY KEY (id)
constraint boot boot_pkey PRIMARY KEY (singleton)
constraint boot boot_singleton_check CHECK (singleton)
constraint closed closed_pkey PRIMARY KEY (before)
constraint cut cut_pkey PRIMARY KEY (id)
constraint dead_letter dead_letter_pkey PRIMARY KEY (event_id, endpoint_id, event_at)
constraint dead_letter dead_letter_reason_check CHECK ((reason = ANY (ARRAY['exhausted'::text, 'permanent'::text, 'worker_crashed'::text, 'render_error'::text, 'event_missing'::text, 'filter_error'::text, 'cancelled'::text])))
constraint dedup dedup_key_has_1_to_256_bytes CHECK (((octet_length(key) >= 1) AND (octet_length(key) <= 256)))
constraint dedup dedup_pkey PRIMARY KEY (producer, customer_id, key)
constraint delivery delivery_pkey PRIMARY KEY (event_id, endpoint_id, event_at)
constraint delivery delivery_trigger_check CHECK ((trigger = ANY (ARRAY['first'::text, 'retry'::text, 'replay'::text])))
constraint endpoint endpoint_change_types_check CHECK (outbox.are_patterns(change_types))
constraint endpoint endpoint_connect_timeout_check CHECK (outbox.is_span(connect_timeout, '00:00:00.1'::interval, '00:01:00'::interval))
constraint endpoint endpoint_customer_id_check CHECK ((length(customer_id) <= 256))
constraint endpoint endpoint_description_check CHECK ((length(description) <= 4096))
constraint endpoint endpoint_event_types_check CHECK (outbox.are_patterns(event_types))
constraint endpoint endpoint_filter_check CHECK (((octet_length(filter) <= 4096) AND ((filter IS NULL) OR ((filter)::jsonpath IS NOT NULL))))
constraint endpoint endpoint_format_check CHECK ((format = ANY (ARRAY['standard'::text, 'citrix'::text, 'raw'::text, 'cloudevents'::text, 'cloudevents-binary'::text, 'template'::text])))
constraint endpoint endpoint_headers_check CHECK ((jsonb_typeof(headers) = 'array'::text))
constraint endpoint endpoint_max_body_bytes_check CHECK ((max_body_bytes > 0))
constraint endpoint endpoint_max_concurrency_check CHECK (((max_concurrency >= 1) AND (max_concurrency <= 10000)))
constraint endpoint endpoint_max_in_flight_check CHECK (((max_in_flight >= 1) AND (max_in_flight <= 10000)))
constraint endpoint endpoint_method_check CHECK ((method = ANY (ARRAY['POST'::text, 'PUT'::text, 'PATCH'::text, 'GET'::text])))
constraint endpoint endpoint_name_check CHECK (((length(name) >= 1) AND (length(name) <= 128)))
constraint endpoint endpoint_on_dead_check CHECK ((on_dead = ANY (ARRAY['block'::text, 'skip'::text])))
constraint endpoint endpoint_pkey PRIMARY KEY (id)
constraint endpoint endpoint_rates_check CHECK ((array_position(rates, NULL::text) IS NULL))
constraint endpoint endpoint_response_rules_check CHECK ((jsonb_typeof(response_rules) = 'object'::text))
constraint endpoint endpoint_template_kind_check CHECK ((template_kind = ANY (ARRAY['json'::text, 'xml'::text, 'text'::text])))
constraint endpoint endpoint_timeout_check CHECK (outbox.is_span(timeout, '00:00:00.1'::interval, '00:05:00'::interval))
constraint endpoint endpoint_url_check CHECK ((length(url) <= 8192))
constraint endpoint has_at_most_100_waits_of_0_to_30_days CHECK (outbox.is_schedule(retry_schedule))
constraint ghost ghost_pkey PRIMARY KEY (event_id, event_at)
constraint lane lane_claims_check CHECK (((claims >= 0) AND (claims <= 1000001)))
constraint lane lane_drain_rate_check CHECK ((drain_rate ~ '^[1-9][0-9]{0,5}/[1-9][0-9]{0,9}(ms|s)( burst [1-9][0-9]{0,5})?$'::text))
constraint lane lane_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES outbox.endpoint(id)
constraint lane lane_pkey PRIMARY KEY (endpoint_id)
constraint lane lane_trips_check CHECK (((trips >= 0) AND (trips <= 1000001)))
constraint migration migration_pkey PRIMARY KEY (version)
constraint ordered_type ordered_type_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES outbox.endpoint(id)
constraint ordered_type ordered_type_pkey PRIMARY KEY (kind, text, customer_id, endpoint_id)
constraint producer_customer producer_customer_pkey PRIMARY KEY (role, customer_id)
constraint secret secret_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES outbox.endpoint(id)
constraint secret secret_kind_check CHECK ((kind = ANY (ARRAY['v1'::text, 'v1a'::text, 'credentials'::text])))
constraint secret secret_pkey PRIMARY KEY (id)
constraint setting setting_attempt_retention_check CHECK (outbox.is_span(attempt_retention, '01:00:00'::interval, '1000 years'::interval))
constraint setting setting_event_retention_check CHECK (outbox.is_span(event_retention, '01:00:00'::interval, '1000 years'::interval))
constraint setting setting_instance_check CHECK ((instance ~ '^[0-9a-z]{1,32}$'::text))
constraint setting setting_partition_unit_check CHECK ((partition_unit = ANY (ARRAY['hour'::text, 'day'::text])))
constraint setting setting_pkey PRIMARY KEY (singleton)
constraint setting setting_singleton_check CHECK (singleton)
constraint timeline timeline_pkey PRIMARY KEY (cluster, database, timeline)
constraint unrouted unrouted_pkey PRIMARY KEY (event_id, endpoint_id, event_at)
constraint worker worker_pkey PRIMARY KEY (id)
CREATE INDEX attempt_endpoint_id_started_at_idx ON ONLY outbox.attempt USING btree (endpoint_id, started_at)
CREATE INDEX attempt_event_id_idx ON ONLY outbox.attempt USING btree (event_id)
CREATE INDEX attempt_started_at_idx ON ONLY outbox.attempt USING brin (started_at) WITH (pages_per_range='32', autosummarize='on')
CREATE INDEX audit_object_at_idx ON outbox.audit USING btree (object, at)
CREATE UNIQUE INDEX audit_pkey ON outbox.audit USING btree (id)
CREATE INDEX batch_customer_id_turn_idx ON outbox.batch USING btree (customer_id, turn) WHERE ((claims = 0) AND (customer_id IS NOT NULL))
CREATE INDEX batch_id_idx ON outbox.batch USING btree (id) WHERE (claims > 0)
CREATE UNIQUE INDEX batch_pkey ON outbox.batch USING btree (id)
CREATE INDEX batch_turn_id_idx ON outbox.batch USING btree (turn, id) WHERE (claims = 0)
CREATE UNIQUE INDEX boot_pkey ON outbox.boot USING btree (singleton)
CREATE UNIQUE INDEX closed_pkey ON outbox.closed USING btree (before)
CREATE UNIQUE INDEX cut_pkey ON outbox.cut USING btree (id)
CREATE INDEX dead_letter_dead_at_idx ON outbox.dead_letter USING btree (dead_at)
CREATE INDEX dead_letter_endpoint_id_dead_at_idx ON outbox.dead_letter USING btree (endpoint_id, dead_at)
CREATE INDEX dead_letter_endpoint_id_ordering_key_idx ON outbox.dead_letter USING btree (endpoint_id, ordering_key) WHERE ((ordering_key IS NOT NULL) AND (reason <> 'cancelled'::text))
CREATE INDEX dead_letter_fingerprint_idx ON outbox.dead_letter USING btree (fingerprint)
CREATE UNIQUE INDEX dead_letter_pkey ON outbox.dead_letter USING btree (event_id, endpoint_id, event_at)
CREATE INDEX dedup_created_at_idx ON outbox.dedup USING btree (created_at)
CREATE UNIQUE INDEX dedup_pkey ON outbox.dedup USING btree (producer, customer_id, key)
CREATE INDEX delivery_endpoint_id_due_at_event_id_idx ON outbox.delivery USING btree (endpoint_id, due_at, event_id) WHERE ((due_at)::timestamp with time zone < 'infinity'::timestamp with time zone)
CREATE INDEX delivery_endpoint_id_due_at_event_id_idx1 ON outbox.delivery USING btree (endpoint_id, due_at, event_id) WHERE ((last_at IS NOT NULL) AND ((due_at)::timestamp with time zone < 'infinity'::timestamp with time zone))
CREATE INDEX delivery_endpoint_id_ordering_key_pass_event_id_idx ON outbox.delivery USING btree (endpoint_id, ordering_key, pass, event_id) WHERE (ordering_key IS NOT NULL)
CREATE UNIQUE INDEX delivery_one_due_per_key ON outbox.delivery USING btree (endpoint_id, ordering_key) WHERE ((ordering_key IS NOT NULL) AND ((due_at)::timestamp with time zone < 'infinity'::timestamp with time zone))
CREATE UNIQUE INDEX delivery_pkey ON outbox.delivery USING btree (event_id, endpoint_id, event_at)
CREATE INDEX endpoint_changed_tx_idx ON outbox.endpoint USING btree (changed_tx)
CREATE INDEX endpoint_id_idx ON outbox.endpoint USING btree (id) WHERE (ordered AND (deleted_at IS NULL))
CREATE UNIQUE INDEX endpoint_name_is_unique ON outbox.endpoint USING btree (customer_id, name) WHERE (deleted_at IS NULL)
CREATE UNIQUE INDEX endpoint_pkey ON outbox.endpoint USING btree (id)
CREATE INDEX event_id_idx ON ONLY outbox.event USING btree (id)
CREATE INDEX event_transaction_id_id_idx ON ONLY outbox.event USING btree (transaction_id, id)
CREATE INDEX event_tx_id_idx ON ONLY outbox.event USING btree (tx, id)
CREATE UNIQUE INDEX ghost_pkey ON outbox.ghost USING btree (event_id, event_at)
CREATE INDEX lane_changed_tx_idx ON outbox.lane USING btree (changed_tx)
CREATE UNIQUE INDEX lane_pkey ON outbox.lane USING btree (endpoint_id)
CREATE UNIQUE INDEX migration_pkey ON outbox.migration USING btree (version)
CREATE INDEX ordered_type_endpoint_id_idx ON outbox.ordered_type USING btree (endpoint_id)
CREATE UNIQUE INDEX ordered_type_pkey ON outbox.ordered_type USING btree (kind, text, customer_id, endpoint_id)
CREATE UNIQUE INDEX producer_customer_pkey ON outbox.producer_customer USING btree (role, customer_id)
CREATE INDEX secret_endpoint_id_idx ON outbox.secret USING btree (endpoint_id)
CREATE UNIQUE INDEX secret_pkey ON outbox.secret USING btree (id)
CREATE UNIQUE INDEX setting_pkey ON outbox.setting USING btree (singleton)
CREATE INDEX stray_tx_id_idx ON outbox.stray USING btree (tx, id)
CREATE UNIQUE INDEX timeline_pkey ON outbox.timeline USING btree (cluster, database, timeline)
CREATE INDEX unrouted_endpoint_id_ordering_key_pass_event_id_idx ON outbox.unrouted USING btree (endpoint_id, ordering_key, pass, event_id)
CREATE INDEX unrouted_endpoint_id_pass_event_id_idx ON outbox.unrouted USING btree (endpoint_id, pass, event_id)
CREATE UNIQUE INDEX unrouted_pkey ON outbox.unrouted USING btree (event_id, endpoint_id, event_at)
CREATE UNIQUE INDEX worker_pkey ON outbox.worker USING btree (id)
function outbox.accepts_requests(outbox.lane,outbox.endpoint) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.advance(uuid[],text[],boolean) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.are_patterns(jsonb) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.ask_filters(bigint[],timestamp with time zone[],text[]) returns TABLE(place bigint, holds boolean, error text) 48ca8d8d2739bff081f655036cc723f2
function outbox.attach_partition(name,name,timestamp with time zone,timestamp with time zone) returns void 1ba9568858bf94141c6a26cc7d746a2f
function outbox.attempts_at(bigint[],timestamp with time zone) returns SETOF outbox.attempt 18d43d489960995d00353c1a85b6dfc1
function outbox.begin_operation(uuid,text) returns uuid d41d8cd98f00b204e9800998ecf8427e
function outbox.catch_up(outbox.cut,integer) returns record 0925e18ba0840ac5378411bc9a3de529
function outbox.choose_events(pg_snapshot,pg_snapshot,xid8[],boolean,bigint,integer) returns outbox.chosen dc15370c81287eecf16f532d90c2a95e
function outbox.claimable_at(outbox.lane) returns timestamp with time zone d41d8cd98f00b204e9800998ecf8427e
function outbox.close_partition() returns text security definer d1c4d16fccc4bd6fe77047fd63df8142
function outbox.cluster_identifier() returns bigint 1478b8f8722d7789ed37739735c4d8a5
function outbox.current_identity() returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.current_timeline() returns integer d41d8cd98f00b204e9800998ecf8427e
function outbox.current_transaction_id() returns uuid d41d8cd98f00b204e9800998ecf8427e
function outbox.cut(integer,integer) returns outbox.cut_result aa25db9244044b9ca65285624ab5a55d
function outbox.database_identifier() returns bigint 5abb3e3d928ae2125fb5b3c544975fc8
function outbox.delete_expired_rows(name,integer) returns integer security definer 58212bfebafd7156ab0d138e6f25028b
function outbox.delete_strays(integer) returns integer 179ba391db339dbf6d3bda73d5f95b22
function outbox.drop_expired_partition() returns text security definer 92ee80faa9261a1394e52291eac719d7
function outbox.due_in(interval) returns timestamp with time zone d41d8cd98f00b204e9800998ecf8427e
function outbox.emit() returns trigger 558240afa24da3c625ca1e3f27751744
function outbox.empty_expired_partition() returns text security definer 1c54528c7cf79f81743b4f57784fccbf
function outbox.events_at(bigint[],timestamp with time zone[]) returns SETOF outbox.event d41d8cd98f00b204e9800998ecf8427e
function outbox.events_in(int8multirange,timestamp with time zone,timestamp with time zone) returns SETOF outbox.event 97c4125b6ac5ba5c909bcb7e092aef92
function outbox.events_of(bigint[]) returns SETOF outbox.event d41d8cd98f00b204e9800998ecf8427e
function outbox.expired_partitions() returns TABLE(oid oid, name name, parent name, lower timestamp with time zone, upper timestamp with time zone) security definer d41d8cd98f00b204e9800998ecf8427e
function outbox.few_partitions() returns interval d41d8cd98f00b204e9800998ecf8427e
function outbox.filter_document(outbox.event) returns jsonb d41d8cd98f00b204e9800998ecf8427e
function outbox.first_events_at(bigint[],timestamp with time zone[]) returns SETOF outbox.event 635f3cc6ea4ac8259d08d43bfa98ecac
function outbox.first_incomplete(outbox.cut) returns bigint d41d8cd98f00b204e9800998ecf8427e
function outbox.grant_publish(name,text[]) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.group_batches(outbox.chosen,integer,bigint,boolean) returns record c90a6f8fbc083b8259af1d430ee15f79
function outbox.has_gone_back() returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.has_uncut(oid,timestamp with time zone) returns boolean fda1541214647161bf7cfa654acb3479
function outbox.is_blocked(uuid,text) returns boolean security definer d41d8cd98f00b204e9800998ecf8427e
function outbox.is_cut(outbox.cut,xid8,bigint) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_delivery(text) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_home(text) returns boolean 7ddc0f72f432524bc6274707f5d9aa4c
function outbox.is_paused(outbox.lane) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_restored(outbox.cut) returns boolean d497053e10d899c3316326dd0e11b826
function outbox.is_schedule(interval[]) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_service() returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_span(interval,interval,interval) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.is_under_way(name,oid,timestamp with time zone) returns boolean ec9d4fdde1a14d0ef430ef2bb15b023a
function outbox.is_well(outbox.lane) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.keepers_of(text,text,text) returns TABLE(id uuid, is_disabled boolean) d41d8cd98f00b204e9800998ecf8427e
function outbox.keeps_house() returns boolean 2db106f7363526b5ccb2651cc4412555
function outbox.keeps_order() returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.key_of(text) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.let_go(uuid[],text[],bigint,boolean) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.let_go_unless_locked(uuid[],text[],bigint) returns uuid[] dcfe958d68d2ed2b1c5413c96a9522ff
function outbox.line_of(text,text) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.lock_unneeded(name,oid,timestamp with time zone) returns boolean 59528451cee745ab1aaafdba24d94473
function outbox.make_next_partition() returns text security definer d1c5ad8435c9f755ac390228c1806649
function outbox.make_partition(name,name,timestamp with time zone,timestamp with time zone) returns boolean c986e88da9d54a01c4996aee34e76be9
function outbox.make_partitions() returns integer security definer f6689d3393ae5ae0a8ede94127dafe0a
function outbox.masked_headers(jsonb) returns jsonb d41d8cd98f00b204e9800998ecf8427e
function outbox.masked_url(text) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.matches(jsonb,text) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.most_bytes_at_a_time() returns bigint d41d8cd98f00b204e9800998ecf8427e
function outbox.move_default_rows(name) returns text security definer ee3dfd5251edf07e2f427a88f7bcacee
function outbox.needed_partitions() returns oid[] d41d8cd98f00b204e9800998ecf8427e
function outbox.newest_events(integer) returns TABLE(created_at timestamp with time zone, customer_id text, type text, change_type text) security definer 68acc5d9f479ab9d31360cc6b667c7b8
function outbox.next_lines(outbox.lane_place,integer) returns SETOF outbox.lane_place d41d8cd98f00b204e9800998ecf8427e
function outbox.note_change() returns trigger 1fd100faf7b4aa6dcca577c470532ffb
function outbox.note_ordered_types() returns trigger security definer 5d0872b4c6f7a16e5ab2be707003faf9
function outbox.note_secret_change() returns trigger security definer dadb9ff506b344a22e928e61bd40465a
function outbox.note_strays(regclass,timestamp with time zone) returns void 7b33fbfab9c3042a2a615289600b3736
function outbox.partition_bounds(timestamp with time zone) returns record d41d8cd98f00b204e9800998ecf8427e
function outbox.partition_to_make(name,timestamp with time zone) returns TABLE(name name, lower timestamp with time zone, upper timestamp with time zone) d41d8cd98f00b204e9800998ecf8427e
function outbox.patterns_in_words(jsonb) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.publish(text,json,text,text,json,text,uuid,text,text,timestamp with time zone,jsonb,timestamp with time zone) returns bigint d41d8cd98f00b204e9800998ecf8427e
function outbox.rebase(integer,boolean,boolean) returns record d41d8cd98f00b204e9800998ecf8427e
function outbox.recent_starts(uuid,interval,integer) returns SETOF timestamp with time zone e5934b78ec13a7b98f984b2716a388ab
function outbox.record_audit(text,text,text,text,jsonb) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.record_trial(uuid,bigint,timestamp with time zone,text,uuid,timestamp with time zone,integer[],boolean,integer,text,text,bytea,text) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.refuse_body(bigint,bigint) returns boolean 97150f17f50276af059a0f772eaaa087
function outbox.release_order(outbox.cut,bigint,integer) returns outbox.cut c5a95b6a69ed8347c4aec6f33d51a11c
function outbox.require_home(text) returns void 7e5678dfa91493ebc32d0ed31d620d2a
function outbox.require_leases(bigint,bigint) returns void 7a7cd131682544af666cdfdb09f8399f
function outbox.require_read_committed() returns void 8237d3499001653ad834575c5a5d3d47
function outbox.route_ordered(bigint[],bigint,boolean,outbox.lane_place[]) returns outbox.lane_place[] beee159bc84fb9a2aee254bf3479e55a
function outbox.sent_at_the_earliest(outbox.lane,timestamp with time zone) returns timestamp with time zone d41d8cd98f00b204e9800998ecf8427e
function outbox.set_body_limit(bigint) returns void d41d8cd98f00b204e9800998ecf8427e
function outbox.snapshot(xid8,xid8[]) returns pg_snapshot d41d8cd98f00b204e9800998ecf8427e
function outbox.stored_size(json,json) returns integer d41d8cd98f00b204e9800998ecf8427e
function outbox.stream_backlog() returns record security definer d41d8cd98f00b204e9800998ecf8427e
function outbox.takes_type(jsonb,text) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.transaction_uuid(timestamp with time zone,xid8) returns uuid d41d8cd98f00b204e9800998ecf8427e
function outbox.uncut(xid8[],bigint,xid8,pg_snapshot,integer) returns TABLE(tx xid8, id bigint, created_at timestamp with time zone, customer_id text, bytes integer) 17f61136d536db226f3dd4a2a6cc3f5e
function outbox.up_to(bigint,integer) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.wake_worker() returns trigger 9c7c6fbc0c8b738f327d0ea7fa95f5ae
function outbox.wants(outbox.endpoint,text,text,text) returns boolean d41d8cd98f00b204e9800998ecf8427e
function outbox.webhook_id(bigint,timestamp with time zone) returns text security definer d41d8cd98f00b204e9800998ecf8427e
function outbox.what_keeps(name,oid,timestamp with time zone,timestamp with time zone) returns text security definer d41d8cd98f00b204e9800998ecf8427e
function outbox.without_values(text) returns text d41d8cd98f00b204e9800998ecf8427e
function outbox.written_patterns(jsonb) returns jsonb d41d8cd98f00b204e9800998ecf8427e
function outbox_api.begin_operation(uuid,text) returns uuid d41d8cd98f00b204e9800998ecf8427e
function outbox_api.emit() returns trigger 558240afa24da3c625ca1e3f27751744
function outbox_api.publish(text,json,text,text,json,text,uuid,text,text,timestamp with time zone,jsonb,timestamp with time zone) returns bigint d41d8cd98f00b204e9800998ecf8427e
function outbox_private.append_audit(name,text,text,text,text,jsonb) returns void security definer d41d8cd98f00b204e9800998ecf8427e
function outbox_private.check_producer(name,text) returns void a5d545f73a8cdba678eb94773c6ddeff
function outbox_private.grant_publish(name,name,text[]) returns void security definer b5803b73f8b70a361af0712f64c5d6f1
function outbox_private.note_stray() returns trigger security definer 36443d2482d50a13ae31f2ca3ab72ea4
function outbox_private.publish(name,text,json,text,text,json,text,uuid,text,text,timestamp with time zone,jsonb,timestamp with time zone) returns bigint security definer 387678dfc8fd603893c79fd63a7c22d6
function outbox_private.rebase(name,integer,boolean,boolean) returns record security definer 2206aa27df74aa2bcbd2faca8191d687
function outbox_private.record_audit(name,text,text,text,text,jsonb) returns void security definer 70d20a9acfe87394bdbf9977ebd50907
function outbox_private.record_trial(name,uuid,bigint,timestamp with time zone,text,uuid,timestamp with time zone,integer[],boolean,integer,text,text,bytea,text) returns void security definer 861df7e6590751b1dde46af411dda6ce
function outbox_private.set_body_limit(name,bigint) returns void security definer 5c75848cc81692fd84faaa8881c6d6a0
view attempts
view backlog
view dead_letters
view deliveries
view endpoint_document
view endpoint_health
view endpoint_state
view grants
view partitions
view problems
view transactions
CREATE TRIGGER note_change BEFORE UPDATE ON outbox.endpoint FOR EACH ROW EXECUTE FUNCTION outbox.note_change()
CREATE TRIGGER note_ordered_types AFTER INSERT OR UPDATE OF ordered, deleted_at, customer_id, event_types ON outbox.endpoint FOR EACH ROW EXECUTE FUNCTION outbox.note_ordered_types()
CREATE TRIGGER wake_worker AFTER INSERT ON outbox.event FOR EACH STATEMENT WHEN ((pg_sequence_last_value('outbox.asleep_until'::regclass) > 1)) EXECUTE FUNCTION outbox.wake_worker()
CREATE TRIGGER note_change BEFORE UPDATE OF resting_until, paused_from, paused_until, drain_rate, trips, recovered_at ON outbox.lane FOR EACH ROW WHEN ((((old.resting_until)::timestamp with time zone IS DISTINCT FROM (new.resting_until)::timestamp with time zone) OR ((old.paused_until)::timestamp with time zone IS DISTINCT FROM (new.paused_until)::timestamp with time zone) OR ((old.paused_from)::timestamp with time zone IS DISTINCT FROM (new.paused_from)::timestamp with time zone) OR (old.drain_rate IS DISTINCT FROM new.drain_rate) OR (old.trips IS DISTINCT FROM new.trips) OR ((old.recovered_at)::timestamp with time zone IS DISTINCT FROM (new.recovered_at)::timestamp with time zone))) EXECUTE FUNCTION outbox.note_change()
CREATE TRIGGER note_change AFTER INSERT OR DELETE OR UPDATE ON outbox.secret FOR EACH ROW EXECUTE FUNCTION outbox.note_secret_change()
grant select on attempt to outbox_operator
grant select on attempts to outbox_operator
grant select on audit to outbox_operator
grant select on backlog to outbox_operator
grant select on batch to outbox_operator
grant select on cut to outbox_operator
grant delete on dead_letter to outbox_operator
grant insert on dead_letter to outbox_operator
grant select on dead_letter to outbox_operator
grant update on dead_letter to outbox_operator
grant select on dead_letters to outbox_operator
grant select on deliveries to outbox_operator
grant delete on delivery to outbox_operator
grant insert on delivery to outbox_operator
grant select on delivery to outbox_operator
grant update on delivery to outbox_operator
grant insert on endpoint to outbox_operator
grant select on endpoint to outbox_operator
grant update on endpoint to outbox_operator
grant select on endpoint_document to outbox_operator
grant select on endpoint_health to outbox_operator
grant select on endpoint_state to outbox_operator
grant select on event to outbox_operator
grant delete on ghost to outbox_operator
grant select on ghost to outbox_operator
grant insert on lane to outbox_operator
grant select on lane to outbox_operator
grant update on lane to outbox_operator
grant select on migration to outbox_operator
grant select on partitions to outbox_operator
grant select on problems to outbox_operator
grant select on producer_customer to outbox_operator
grant delete on secret to outbox_operator
grant insert on secret to outbox_operator
grant select on secret to outbox_operator
grant update on secret to outbox_operator
grant select on setting to outbox_operator
grant select on timeline to outbox_operator
grant select on transactions to outbox_operator
grant delete on unrouted to outbox_operator
grant select on unrouted to outbox_operator
grant select on worker to outbox_operator
grant select on attempts to outbox_reader
grant select on backlog to outbox_reader
grant select on dead_letters to outbox_reader
grant select on deliveries to outbox_reader
grant select on endpoint_health to outbox_reader
grant select on endpoint_state to outbox_reader
grant select on problems to outbox_reader
grant select on setting to outbox_reader
grant select on transactions to outbox_reader
grant insert on attempt to outbox_worker
grant select on attempt to outbox_worker
grant select on attempt_default to outbox_worker
grant select on attempts to outbox_worker
grant select on audit to outbox_worker
grant select on backlog to outbox_worker
grant delete on batch to outbox_worker
grant insert on batch to outbox_worker
grant select on batch to outbox_worker
grant update on batch to outbox_worker
grant insert on boot to outbox_worker
grant select on boot to outbox_worker
grant select on closed to outbox_worker
grant delete on cut to outbox_worker
grant insert on cut to outbox_worker
grant select on cut to outbox_worker
grant select on cutting to outbox_worker
grant update on cutting to outbox_worker
grant delete on dead_letter to outbox_worker
grant insert on dead_letter to outbox_worker
grant select on dead_letter to outbox_worker
grant update on dead_letter to outbox_worker
grant select on dead_letters to outbox_worker
grant delete on dedup to outbox_worker
grant select on dedup to outbox_worker
grant select on deliveries to outbox_worker
grant delete on delivery to outbox_worker
grant insert on delivery to outbox_worker
grant select on delivery to outbox_worker
grant update on delivery to outbox_worker
grant select on endpoint to outbox_worker
grant select on endpoint_document to outbox_worker
grant select on endpoint_health to outbox_worker
grant select on endpoint_state to outbox_worker
grant select on event to outbox_worker
grant select on event_default to outbox_worker
grant delete on ghost to outbox_worker
grant insert on ghost to outbox_worker
grant select on ghost to outbox_worker
grant select on granted to outbox_worker
grant select on grants to outbox_worker
grant select on keeping to outbox_worker
grant select on lane to outbox_worker
grant update on lane to outbox_worker
grant select on migration to outbox_worker
grant select on ordered_type to outbox_worker
grant select on partitions to outbox_worker
grant select on problems to outbox_worker
grant select on producer_customer to outbox_worker
grant delete on secret to outbox_worker
grant select on secret to outbox_worker
grant select on setting to outbox_worker
grant delete on stray to outbox_worker
grant select on stray to outbox_worker
grant insert on timeline to outbox_worker
grant select on timeline to outbox_worker
grant select on transactions to outbox_worker
grant delete on unrouted to outbox_worker
grant insert on unrouted to outbox_worker
grant select on unrouted to outbox_worker
grant delete on worker to outbox_worker
grant insert on worker to outbox_worker
grant select on worker to outbox_worker
grant update on worker to outbox_worker
grant execute on accepts_requests to outbox_operator
grant execute on advance to outbox_operator
grant execute on are_patterns to outbox_operator
grant execute on begin_operation to outbox_operator
grant execute on outbox_api.begin_operation to outbox_operator
grant execute on claimable_at to outbox_operator
grant execute on cluster_identifier to outbox_operator
grant execute on current_identity to outbox_operator
grant execute on current_transaction_id to outbox_operator
grant execute on database_identifier to outbox_operator
grant execute on emit to outbox_operator
grant execute on outbox_api.emit to outbox_operator
grant execute on events_at to outbox_operator
grant execute on expired_partitions to outbox_operator
grant execute on few_partitions to outbox_operator
grant execute on first_events_at to outbox_operator
grant execute on first_incomplete to outbox_operator
grant execute on outbox_private.grant_publish to outbox_operator
grant execute on grant_publish to outbox_operator
grant execute on is_blocked to outbox_operator
grant execute on is_cut to outbox_operator
grant execute on is_delivery to outbox_operator
grant execute on is_home to outbox_operator
grant execute on is_paused to outbox_operator
grant execute on is_restored to outbox_operator
grant execute on is_schedule to outbox_operator
grant execute on is_service to outbox_operator
grant execute on is_span to outbox_operator
grant execute on is_well to outbox_operator
grant execute on key_of to outbox_operator
grant execute on let_go to outbox_operator
grant execute on masked_headers to outbox_operator
grant execute on masked_url to outbox_operator
grant execute on matches to outbox_operator
grant execute on most_bytes_at_a_time to outbox_operator
grant execute on newest_events to outbox_operator
grant execute on patterns_in_words to outbox_operator
grant execute on outbox_private.publish to outbox_operator
grant execute on publish to outbox_operator
grant execute on outbox_api.publish to outbox_operator
grant execute on outbox_private.rebase to outbox_operator
grant execute on rebase to outbox_operator
grant execute on outbox_private.record_audit to outbox_operator
grant execute on record_audit to outbox_operator
grant execute on outbox_private.record_trial to outbox_operator
grant execute on record_trial to outbox_operator
grant execute on refuse_body to outbox_operator
grant execute on require_home to outbox_operator
grant execute on sent_at_the_earliest to outbox_operator
grant execute on outbox_private.set_body_limit to outbox_operator
grant execute on set_body_limit to outbox_operator
grant execute on stream_backlog to outbox_operator
grant execute on takes_type to outbox_operator
grant execute on transaction_uuid to outbox_operator
grant execute on up_to to outbox_operator
grant execute on wake_worker to outbox_operator
grant execute on wants to outbox_operator
grant execute on webhook_id to outbox_operator
grant execute on what_keeps to outbox_operator
grant execute on written_patterns to outbox_operator
grant execute on begin_operation to outbox_producer
grant execute on outbox_api.begin_operation to outbox_producer
grant execute on current_identity to outbox_producer
grant execute on current_transaction_id to outbox_producer
grant execute on emit to outbox_producer
grant execute on outbox_api.emit to outbox_producer
grant execute on is_service to outbox_producer
grant execute on outbox_private.publish to outbox_producer
grant execute on publish to outbox_producer
grant execute on outbox_api.publish to outbox_producer
grant execute on refuse_body to outbox_producer
grant execute on transaction_uuid to outbox_producer
grant execute on wake_worker to outbox_producer
grant execute on accepts_requests to outbox_reader
grant execute on claimable_at to outbox_reader
grant execute on cluster_identifier to outbox_reader
grant execute on database_identifier to outbox_reader
grant execute on expired_partitions to outbox_reader
grant execute on first_incomplete to outbox_reader
grant execute on is_blocked to outbox_reader
grant execute on is_cut to outbox_reader
grant execute on is_delivery to outbox_reader
grant execute on is_home to outbox_reader
grant execute on is_paused to outbox_reader
grant execute on is_restored to outbox_reader
grant execute on is_well to outbox_reader
grant execute on key_of to outbox_reader
grant execute on matches to outbox_reader
grant execute on most_bytes_at_a_time to outbox_reader
grant execute on newest_events to outbox_reader
grant execute on patterns_in_words to outbox_reader
grant execute on sent_at_the_earliest to outbox_reader
grant execute on stream_backlog to outbox_reader
grant execute on takes_type to outbox_reader
grant execute on up_to to outbox_reader
grant execute on wants to outbox_reader
grant execute on webhook_id to outbox_reader
grant execute on what_keeps to outbox_reader
grant execute on written_patterns to outbox_reader
grant execute on accepts_requests to outbox_worker
grant execute on advance to outbox_worker
grant execute on are_patterns to outbox_worker
grant execute on ask_filters to outbox_worker
grant execute on attempts_at to outbox_worker
grant execute on catch_up to outbox_worker
grant execute on choose_events to outbox_worker
grant execute on claimable_at to outbox_worker
grant execute on close_partition to outbox_worker
grant execute on cluster_identifier to outbox_worker
grant execute on current_identity to outbox_worker
grant execute on current_timeline to outbox_worker
grant execute on current_transaction_id to outbox_worker
grant execute on cut to outbox_worker
grant execute on database_identifier to outbox_worker
grant execute on delete_expired_rows to outbox_worker
grant execute on delete_strays to outbox_worker
grant execute on drop_expired_partition to outbox_worker
grant execute on due_in to outbox_worker
grant execute on empty_expired_partition to outbox_worker
grant execute on events_at to outbox_worker
grant execute on events_in to outbox_worker
grant execute on events_of to outbox_worker
grant execute on expired_partitions to outbox_worker
grant execute on few_partitions to outbox_worker
grant execute on filter_document to outbox_worker
grant execute on first_events_at to outbox_worker
grant execute on first_incomplete to outbox_worker
grant execute on group_batches to outbox_worker
grant execute on has_gone_back to outbox_worker
grant execute on is_blocked to outbox_worker
grant execute on is_cut to outbox_worker
grant execute on is_delivery to outbox_worker
grant execute on is_home to outbox_worker
grant execute on is_paused to outbox_worker
grant execute on is_restored to outbox_worker
grant execute on is_schedule to outbox_worker
grant execute on is_service to outbox_worker
grant execute on is_span to outbox_worker
grant execute on is_well to outbox_worker
grant execute on keepers_of to outbox_worker
grant execute on keeps_order to outbox_worker
grant execute on let_go_unless_locked to outbox_worker
grant execute on let_go to outbox_worker
grant execute on line_of to outbox_worker
grant execute on make_next_partition to outbox_worker
grant execute on make_partitions to outbox_worker
grant execute on matches to outbox_worker
grant execute on most_bytes_at_a_time to outbox_worker
grant execute on move_default_rows to outbox_worker
grant execute on needed_partitions to outbox_worker
grant execute on newest_events to outbox_worker
grant execute on next_lines to outbox_worker
grant execute on partition_bounds to outbox_worker
grant execute on patterns_in_words to outbox_worker
grant execute on recent_starts to outbox_worker
grant execute on outbox_private.record_audit to outbox_worker
grant execute on record_audit to outbox_worker
grant execute on refuse_body to outbox_worker
grant execute on release_order to outbox_worker
grant execute on require_home to outbox_worker
grant execute on require_leases to outbox_worker
grant execute on require_read_committed to outbox_worker
grant execute on route_ordered to outbox_worker
grant execute on sent_at_the_earliest to outbox_worker
grant execute on snapshot to outbox_worker
grant execute on stored_size to outbox_worker
grant execute on stream_backlog to outbox_worker
grant execute on takes_type to outbox_worker
grant execute on transaction_uuid to outbox_worker
grant execute on uncut to outbox_worker
grant execute on up_to to outbox_worker
grant execute on wants to outbox_worker
grant execute on webhook_id to outbox_worker
grant execute on what_keeps to outbox_worker
grant execute on without_values to outbox_worker
grant execute on written_patterns to outbox_worker
