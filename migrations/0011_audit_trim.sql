-- Where a tenant's audit chain begins. Retention removes the oldest events; the place and the hash of the last one removed stay
-- here, so that the rest is still checked from its first link on, and nobody else's cut passes for retention.
alter table audit_heads add column trimmed_seq bigint not null default 0;
alter table audit_heads add column trimmed_hash text not null default repeat('0', 64);
alter table audit_heads add constraint audit_heads_trimmed_hash check (trimmed_hash ~ '^[0-9a-f]{64}$');
