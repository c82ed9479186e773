-- Sessions that were revoked lately: each serving process reads them once a second (lua/kasma/ended.lua).

create index auth_sessions_revoked on auth_sessions (revoked_at, id) where revoked_at is not null;
