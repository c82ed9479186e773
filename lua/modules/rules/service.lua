-- What a rule goes through: a draft that is checked whenever it is saved, versions that never change, one of them active. Publishing is
-- checks, then one transaction (version, active version, epoch, audit), then word to the workers.
local crypto = require("core.crypto")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local settings = require("kasma.settings")
local text = require("kasma.text")
local keys = require("modules.iam.keys")
local promotions = require("modules.promotions.service")
local drafts = require("modules.rules.drafts")
local examine = require("modules.rules.examine")
local facts = require("modules.rules.facts")
local live = require("modules.rules.live")
local preview = require("modules.rules.preview")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")
local window = require("modules.rules.window")

local M = {}

--- Keys that no rule may have: they are words of the routes.
M.RESERVED = { hooks = true, templates = true, stubs = true, create = true, check = true, runs = true, previews = true, requests = true,
    workflows = true, secrets = true, stream = true, export = true, import = true, pause = true, resume = true }

local RULES_MAX, PER_HOOK = 200, 25
local END = "the end of its window"
local LIVE_WAIT_MS = 1500

M.key_taken = errors.declare{ code = "key_taken", status = 409, message = "A rule of this key exists",
    cause = "keys are unique in a tenant",
    cure = "choose another key" }
M.rule_limit = errors.declare{ code = "rule_limit", status = 409, message = "A tenant has 200 rules at most",
    cause = "200 rules exist", cure = "remove one" }
M.hook_limit = errors.declare{ code = "hook_limit", status = 409, message = "A hook has 25 active rules at most",
    cause = "25 rules of the hook are active", cure = "disable one" }
M.draft_conflict = errors.declare{ code = "draft_conflict", status = 409, message = "The draft was changed by somebody else",
    cause = "the revision is not the newest", cure = "read the draft again" }
M.rule_locked = errors.declare{ code = "rule_locked", status = 409, message = "The rule comes from a file", cause = "its origin is file",
    cure = "change the file" }
M.check_failed, M.tests_failed, M.warning_not_accepted = examine.check_failed, examine.tests_failed, examine.warning_not_accepted
M.rule_active = errors.declare{ code = "rule_active", status = 409, message = "The rule is active", cause = "it is live",
    cure = "disable it first" }
M.rule_off = errors.declare{ code = "rule_off", status = 409, message = "The rule is not in that state",
    cause = "it was never published, or is archived", cure = "publish or restore it" }
M.same_person = errors.declare{ code = "same_person", status = 403, message = "Somebody else has to approve",
    cause = "the approver is the author", cure = "ask a colleague" }
M.too_late = errors.declare{ code = "restore_too_late", status = 410, message = "A removed rule is restorable for 30 days",
    cause = "it was removed longer ago", cure = "make it anew; its versions are kept" }
M.request_decided = errors.declare{ code = "request_decided", status = 409, message = "The request is decided already",
    cause = "it is done, rejected or cancelled", cure = "none is needed" }
M.secret_in_use = errors.declare{ code = "secret_in_use", status = 409, message = "A live rule needs this secret",
    cause = "a rule's needs name it", cure = "disable the rule first" }

---@param tenant string
---@param ref string id or key
---@return table rule; raises not found
function M.find(tenant, ref)
    local rule = store.find(tenant, ref)
    if not rule then errors.not_found{ message = "Rule not found" } end
    return rule
end

M.doctor = facts.of
M.libraries, M.check, M.check_all, M.test, M.examine = examine.libraries, examine.check, examine.check_all, examine.test, examine.all

-- Drafts -----------------------------------------------------------------------------------------------------------------------

local function clean_settings(s)
    s = s or {}
    return { config = s.config, priority = s.priority, on_error = s.on_error, fallback = s.fallback,
        startsAt = window.text(s.startsAt), endsAt = window.text(s.endsAt) }
end

--- A rule that is not there yet, and the statements that put it there as a draft. Raises rule_limit, 400.
---@param scope Scope
---@param input table key, hook, name, source, settings, tests
---@return table row, table[] statements
function M.new_rule(scope, input)
    if not catalogue.get(input.hook) then errors.bad_request{ message = { "hook is not one of ours" }, code = "hook_unknown" } end
    if store.count(scope.tenant) >= RULES_MAX then M.rule_limit() end
    local now, id = time.iso(time.now()), uuid.v7()
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = id, key = input.key, hook = input.hook, name = input.name,
        priority = input.settings and input.settings.priority or 0, origin = input.origin or "console", created_by = scope.actor_id,
        source = input.source, settings = clean_settings(input.settings), tests = input.tests or "", now = now }
    local statements = { store.insert_rule(row), store.insert_draft(row) }
    audit.append(statements, scope, { action = "rules.create", entity_type = "rule", entity_id = id, after = { key = input.key,
        hook = input.hook, name = input.name } })
    return row, statements
end

---@param scope Scope
---@param input table key, hook, name, source, settings, tests
---@return table rule, table draft, table report
function M.create(scope, input)
    local row, statements = M.new_rule(scope, input)
    errors.unique({ rules_key_once = M.key_taken.code }, db.pipeline, scope.tenant, statements)
    local report = M.check(scope.tenant, { source = row.source, hook = row.hook, settings = row.settings, key = row.key })
    stream.tell(scope.tenant, "saved", { key = row.key, revision = 1, ok = report.ok })
    return store.find(scope.tenant, row.id), store.draft(scope.tenant, row.id), report
end

---@param scope Scope
---@param ref string
---@param input table revision, source, settings, tests (any of them)
---@return table rule, table draft, table report
function M.save(scope, ref, input)
    local rule = M.find(scope.tenant, ref)
    if rule.origin == "file" then M.rule_locked() end
    local draft = store.draft(scope.tenant, rule.id)
    local now = time.iso(time.now())
    local fresh = { tenant_key = scope.tenant, rule_id = rule.id, revision = input.revision, source = input.source or draft.source,
        settings = input.settings and clean_settings(input.settings) or draft.settings, tests = input.tests or draft.tests,
        updated_by = scope.actor_id, now = now }
    db.transaction(scope.tenant, function(tx)
        if not tx:pipeline{ store.save_draft(fresh) }[1][1] then
            M.draft_conflict{ details = { yours = input.revision, theirs = draft.revision } }
        end
        local last = {}
        audit.append(last, scope, { action = "rules.save", entity_type = "rule", entity_id = rule.id,
            after = { revision = input.revision + 1, sha256 = crypto.sha256(fresh.source) } })
        tx:at_commit(last)
    end)
    local report = M.check(scope.tenant, { source = fresh.source, hook = rule.hook, settings = fresh.settings, key = rule.key })
    stream.tell(scope.tenant, "saved", { key = rule.key, revision = input.revision + 1, ok = report.ok })
    if report.manifest and type(report.manifest.name) == "string" and report.manifest.name ~= rule.name and rule.state == "draft" then
        db.pipeline(scope.tenant, { store.rename(scope.tenant, rule.id, report.manifest.name, now) })
    end
    return store.find(scope.tenant, rule.id), store.draft(scope.tenant, rule.id), report
end

--- The draft becomes the active version again.
function M.discard(scope, ref)
    local rule = M.find(scope.tenant, ref)
    if not rule.active_version
        or rule.active_version == json.null then M.rule_off{ message = "There is no active version to go back to" } end
    local draft = store.draft(scope.tenant, rule.id)
    local version = store.version(scope.tenant, rule.id, rule.active_version)
    return M.save(scope, rule.id, { revision = draft.revision, source = version.source, settings = version.settings,
        tests = version.tests })
end

-- Publishing -------------------------------------------------------------------------------------------------------------------

local function sha_of(source, set)
    return crypto.sha256(source .. "\0" .. audit.canonical(set))
end

--- Waits, at most a moment, until every live worker has loaded the epoch.
---@return {workers: integer, loaded: integer}
local function await_live(tenant, epoch)
    local deadline = time.mono() + LIVE_WAIT_MS * 1000
    while true do
        local row = store.live(tenant, epoch)
        if row.loaded >= row.workers or time.mono() > deadline then return { workers = row.workers, loaded = row.loaded } end
        sched.sleep(25)
    end
end

-- Tells all workers of a change and waits for them: what was switched off is off when its switch has answered.
local function tell_live(tenant)
    live.changed(tenant)
    await_live(tenant, store.epoch(tenant))
end

-- The transaction that makes a version live. `o`: source, settings, tests, note, source_version, revision (of the draft that must still
-- be the present one), saved (the revision that this is, for who wrote it), preview, approved_by, published_by; `before(tx)`, what comes
-- first in that transaction; `claim`, a statement that takes the request which asked for it (no row: somebody decided it meanwhile), and
-- `also`, which makes the statements that belong to it from the version's number.
function M.make_live(scope, rule, o, report)
    local now, epoch, number = time.iso(time.now()), nil, nil
    local libs = report.libs -- those that it was checked with; one that was given with it has been published meanwhile
    for _, library in ipairs(libs) do
        if library.version == 0 then libs = M.libraries(scope.tenant, o.source) break end
    end
    local name = report.manifest and type(report.manifest.name) == "string" and report.manifest.name or rule.name
    local set = clean_settings(o.settings)
    local priority = set.priority or report.manifest and tonumber(report.manifest.priority) or 0
    set.priority = priority
    set.on_error = set.on_error or report.manifest and report.manifest.on_error or "skip"
    db.transaction(scope.tenant, function(tx)
        if o.before then o.before(tx) end
        if o.claim and not tx:pipeline{ o.claim }[1][1] then M.request_decided() end
        local row = store.lock(tx, scope.tenant, rule.id)
        if o.revision then
            local draft = store.lock_draft(tx, scope.tenant, rule.id)
            if draft.revision ~= o.revision then M.draft_conflict{ details = { yours = o.revision, theirs = draft.revision } } end
        end
        if row.state == "archived" then M.rule_off{ message = "The rule is removed; restore it first" } end
        if store.count_active(tx, scope.tenant, rule.hook, rule.id) >= PER_HOOK then M.hook_limit() end
        number = row.last_version + 1
        local statements = {
            store.insert_version{ tenant_key = scope.tenant, app_key = scope.app, rule_id = rule.id, version = number, source = o.source,
                settings = set, tests = o.tests or "", libs = libs, sha256 = sha_of(o.source, set), note = o.note,
                source_version = o.source_version, check_report = { samples = #report.sampleRuns, tests = report.tests,
                    stored = report.stored, warnings = examine.warnings(report), picks = report.picks }, preview = o.preview,
                published_by = o.published_by or scope.actor_id, approved_by = o.approved_by, now = now },
            store.activate(scope.tenant, rule.id, number, priority, name, now),
            store.bump(scope, now),
            outbox.event(scope, "rule.published", rule.id, { key = rule.key, hook = rule.hook, version = number,
                actorId = scope.actor_id or null, reason = o.note or null }),
        }
        if rule.hook == "promotion" then
            statements[#statements + 1] = promotions.put_script(scope, { id = rule.id, name = name, priority = priority }, now)
        end
        statements[#statements + 1] = window.wait(scope, rule.id, set, time.parse(now))
        hooks.append_switch(statements, scope, rule.hook)
        if o.saved then statements[#statements + 1] = store.forget_authors(scope.tenant, rule.id, o.saved) end
        for _, statement in ipairs(o.also and o.also(number) or {}) do statements[#statements + 1] = statement end
        audit.append(statements, scope, { action = o.source_version and "rules.rollback" or "rules.publish", entity_type = "rule",
            entity_id = rule.id, before = { version = row.active_version }, after = { version = number, note = o.note,
                sourceVersion = o.source_version } })
        epoch = tx:pipeline(statements)[3][1].epoch
    end)
    stream.tell(scope.tenant, "published", { key = rule.key, version = number, epoch = epoch })
    live.changed(scope.tenant)
    return { version = number, epoch = epoch, live = await_live(scope.tenant, epoch), diagnostics = report.diagnostics }
end

function M.needs_approval(tenant, hook)
    local wanted = settings.get(tenant, "rules.approval")
    if wanted == "all" then return true end
    for _, name in ipairs(settings.get(tenant, "rules.approvalHooks")) do
        if name == hook then return true end
    end
    return false
end

---@param scope Scope
---@param ref string
---@param input table revision, note, at, until, acceptWarnings, previewId
---@return integer status, table body
function M.publish(scope, ref, input)
    local rule = M.find(scope.tenant, ref)
    local draft = store.draft(scope.tenant, rule.id)
    if draft.revision ~= input.revision then M.draft_conflict{ details = { yours = input.revision, theirs = draft.revision } } end
    local cited = input.previewId and preview.cited(scope.tenant, input.previewId, rule, draft.revision)
    local report = examine.all(scope.tenant, rule, draft, input.acceptWarnings)
    local now = time.now()
    local at, until_ms = input.at and time.parse(input.at), input["until"] and time.parse(input["until"])
    if until_ms and until_ms <= (at or now) then
        errors.bad_request{ message = { "until must come after at" }, code = "window_invalid" }
    end
    local _, ends = window.of(draft.settings)
    if ends and ends <= (at or now) then errors.bad_request{ message = { "endsAt is past" }, code = "window_invalid" } end
    local approval = M.needs_approval(scope.tenant, rule.hook)
    if not approval and not (at and at > now) then
        local function until_then(number)
            if not until_ms then return {} end
            local id = uuid.v7()
            return { store.insert_request{ tenant_key = scope.tenant, app_key = scope.app, id = id, rule_id = rule.id,
                source = draft.source, settings = draft.settings, tests = draft.tests, note = input.note, until_at = input["until"],
                state = "done", version = number, requested_by = scope.actor_id, now = time.iso(now) },
                due.put(scope, "rules.schedule", id, until_ms) }
        end
        return 201, M.make_live(scope, rule, { source = draft.source, settings = draft.settings, tests = draft.tests, note = input.note,
            revision = input.revision, saved = input.revision, preview = cited, also = until_then }, report)
    end
    local id = uuid.v7()
    local state = approval and "pending_approval" or "scheduled"
    local statements = { store.insert_request{ tenant_key = scope.tenant, app_key = scope.app, id = id, rule_id = rule.id,
        source = draft.source, settings = draft.settings, tests = draft.tests, note = input.note, publish_at = at and input.at,
        until_at = input["until"], accepted = input.acceptWarnings, state = state, requested_by = scope.actor_id, now = time.iso(now),
        authors = draft.authors, revision = draft.revision, preview = cited } }
    if state == "scheduled" then statements[2] = due.put(scope, "rules.schedule", id, at) end
    audit.append(statements, scope, { action = "rules.request", entity_type = "rule", entity_id = rule.id, after = { note = input.note,
        state = state, at = input.at, ["until"] = input["until"] } })
    db.pipeline(scope.tenant, statements)
    return 202, { state = state, requestId = id }
end

-- Publishes what a request asked for. That it is done, its version, its end and its audit stand in the transaction that makes it live:
-- two who decide at once do so once, and a crash leaves it undecided or done.
local function publish_request(scope, request, o)
    local rule = M.find(scope.tenant, request.rule_id)
    local snapshot = { source = request.source, settings = request.settings, tests = request.tests }
    local report = examine.all(scope.tenant, rule, snapshot, request.accepted)
    local revision = request.revision ~= json.null and request.revision or nil
    local cited = request.preview ~= json.null and request.preview or nil
    local now = time.iso(time.now())
    local function also(number)
        local until_at = request.until_at ~= json.null and request.until_at
        local statements = {
            store.decide(scope.tenant, request.id, { "done" }, "done", nil, number, o.note, now),
            until_at and due.put(scope, "rules.schedule", request.id, time.parse(until_at))
                or due.drop(scope.tenant, "rules.schedule", request.id),
        }
        audit.append(statements, scope, { action = o.action, entity_type = "rule", entity_id = request.rule_id,
            after = { version = number, note = o.note, lateSeconds = o.late } })
        return statements
    end
    return M.make_live(scope, rule, { source = snapshot.source, settings = snapshot.settings, tests = snapshot.tests, note = request.note,
        saved = revision, preview = cited, approved_by = o.approved_by,
        published_by = request.requested_by ~= json.null and request.requested_by or nil,
        claim = store.decide(scope.tenant, request.id, { request.state }, "done", o.approved_by, nil, o.note, now), also = also }, report)
end

local function open_request(tenant, id)
    local request = store.request(tenant, id)
    if not request then errors.not_found{ message = "Request not found" } end
    if request.state ~= "pending_approval" and request.state ~= "scheduled" then M.request_decided() end
    return request
end

-- Takes a request from the state it was read in into another, with what belongs to that; who comes second is told so.
local function decide(scope, request, state, note, statements, action)
    audit.append(statements, scope, { action = action, entity_type = "rule", entity_id = request.rule_id, after = { note = note } })
    db.transaction(scope.tenant, function(tx)
        if not tx:pipeline{ store.decide(scope.tenant, request.id, { request.state }, state, scope.actor_id, nil, note,
            time.iso(time.now())) }[1][1] then M.request_decided() end
        tx:at_commit(statements)
    end)
end

-- Whether who decides is who asked, or one of those who wrote what is asked for: in person, or by a key of their own.
local function one_person(scope, request)
    local function person(id) return keys.maker(scope.tenant, id) or id end
    local me = person(scope.actor_id)
    if request.requested_by ~= json.null and person(request.requested_by) == me then return true end
    for author in pairs(type(request.authors) == "table" and request.authors or {}) do
        if person(author) == me then return true end
    end
    return false
end

---@param scope Scope
---@param id string
---@param note string
---@return integer status, table body
function M.approve(scope, id, note)
    local request = open_request(scope.tenant, id)
    if request.state ~= "pending_approval" then M.request_decided() end
    if one_person(scope, request) then M.same_person() end
    local now = time.now()
    local at = request.publish_at ~= json.null and request.publish_at and time.parse(request.publish_at)
    if at and at > now then
        decide(scope, request, "scheduled", note, { due.put(scope, "rules.schedule", id, at) }, "rules.approve")
        return 202, { state = "scheduled", requestId = id }
    end
    return 201, publish_request(scope, request, { approved_by = scope.actor_id, note = note, action = "rules.approve" })
end

---@param scope Scope
---@param id string
---@param state "rejected"|"cancelled"
---@param note string
function M.refuse(scope, id, state, note)
    local request = open_request(scope.tenant, id)
    if state == "rejected" and one_person(scope, request) then M.same_person{ message = "Your own request is cancelled, not rejected" } end
    decide(scope, request, state, note, { due.drop(scope.tenant, "rules.schedule", id) },
        "rules." .. (state == "rejected" and "reject" or "cancel"))
    return { state = state, requestId = id }
end

--- A request whose time has come: published at `at`, disabled at `until`.
---@param tenant string
---@param id string
function M.on_due(tenant, id)
    local request = store.request(tenant, id)
    local scope = { tenant = tenant, app = "MASTER", actor_kind = "system" }
    local now = time.now()
    if request and request.state == "scheduled" then
        local late = math.floor((now - time.parse(request.publish_at)) / 1000)
        local ok, why = pcall(publish_request, scope, request, { action = "rules.schedule", late = late,
            approved_by = request.decided_by ~= json.null and request.decided_by or nil })
        if ok or (errors.is(why) and why.code == M.request_decided.code) then return end
        if errors.is_unavailable(why) then error(why, 0) end
        why = type(why) == "table" and tostring(why.message or why.code) or tostring(why)
        local statements = { store.decide(tenant, id, { "scheduled" }, "failed", nil, nil, text.plain(why, 500), time.iso(now)),
            due.drop(tenant, "rules.schedule", id) }
        audit.append(statements, scope, { action = "rules.schedule", entity_type = "rule", entity_id = request.rule_id,
            outcome = "error", after = { why = why, lateSeconds = late } })
        db.pipeline(tenant, statements)
        return
    end
    if request and request.state == "done" and request.version then
        local rule = store.find(tenant, request.rule_id)
        if rule and rule.state == "active" and rule.active_version == request.version then
            M.set_state(scope, rule, "disabled", END, request.version)
        end
    end
    db.pipeline(tenant, { due.drop(tenant, "rules.schedule", id) })
end

--- A bound of an active version's window: at its start it goes live, at its end the rule is disabled.
---@param tenant string
---@param rule_id string
function M.on_window(tenant, rule_id)
    local scope = { tenant = tenant, app = "MASTER", actor_kind = "system" }
    local now = time.now()
    local rule = store.find(tenant, rule_id)
    local version = rule and rule.state == "active" and store.version(tenant, rule_id, rule.active_version)
    local _, ends = window.of(version and version.settings)
    if ends and ends <= now then
        M.set_state(scope, rule, "disabled", END, version.version)
        return
    end
    db.transaction(tenant, function(tx)
        -- A publication meanwhile has written the row of its own window, which stays.
        local row = rule and store.lock(tx, tenant, rule_id)
        if row and row.state == "active" and not (version and row.active_version == version.version) then return end
        if not version then return tx:at_commit{ due.drop(tenant, window.KIND, rule_id) } end
        local statements = { store.bump(scope, time.iso(now)), window.wait(scope, rule_id, version.settings, now) }
        audit.append(statements, scope, { action = "rules.window", entity_type = "rule", entity_id = rule_id,
            after = { version = version.version, opened = window.is_open(version.settings, now) } })
        hooks.append_switch(statements, scope, rule.hook)
        tx:at_commit(statements)
    end)
    live.changed(tenant)
end

---@param scope Scope
---@param ref string
---@param input {toVersion: integer, note: string}
---@return table
function M.rollback(scope, ref, input)
    local rule = M.find(scope.tenant, ref)
    local version = store.version(scope.tenant, rule.id, input.toVersion)
    if not version then errors.not_found{ message = "Version not found" } end
    -- The shop's past is not asked: what was live before must be so again within a second.
    local report = M.check(scope.tenant, { source = version.source, hook = rule.hook, settings = version.settings, key = rule.key })
    if not report.ok then M.check_failed{ details = { diagnostics = report.diagnostics } } end
    local done = M.make_live(scope, rule, { source = version.source, settings = version.settings, tests = version.tests, note = input.note,
        source_version = input.toVersion }, report)
    done.sourceVersion = input.toVersion
    return done
end

-- States -----------------------------------------------------------------------------------------------------------------------

--- Puts a rule into a state and tells the workers. Raises rule_off when it was changed meanwhile, hook_limit.
---@param scope Scope
---@param rule table as it was read
---@param state string
---@param reason string
---@param version integer|nil only while this one is active
---@return table rule
function M.set_state(scope, rule, state, reason, version)
    local now = time.iso(time.now())
    local enabled = state == "active" and store.version(scope.tenant, rule.id, rule.active_version)
    local statements = { store.bump(scope, now), outbox.event(scope, "rule." .. state, rule.id, { key = rule.key, hook = rule.hook,
        version = rule.active_version or null, actorId = scope.actor_id or null, reason = reason or null }) }
    if rule.hook == "promotion" then
        statements[#statements + 1] = promotions.set_script_state(scope.tenant, rule.id, state == "active", now)
    end
    statements[#statements + 1] = window.wait(scope, rule.id, enabled and enabled.settings, time.parse(now))
    hooks.append_switch(statements, scope, rule.hook)
    local verbs = { active = "enable", disabled = "disable", archived = "remove", draft = "restore" }
    audit.append(statements, scope, { action = "rules." .. verbs[state], entity_type = "rule", entity_id = rule.id,
        before = { state = rule.state }, after = { state = state, reason = reason } })
    db.transaction(scope.tenant, function(tx)
        if state == "active" and store.count_active(tx, scope.tenant, rule.hook, rule.id) >= PER_HOOK then M.hook_limit() end
        if not tx:pipeline{ store.set_state(scope.tenant, rule.id, rule.state, state, reason, now, version) }[1][1] then
            M.rule_off{ message = "The rule was changed meanwhile" }
        end
        tx:at_commit(statements)
    end)
    tell_live(scope.tenant)
    return store.find(scope.tenant, rule.id)
end

function M.disable(scope, ref, reason)
    local rule = M.find(scope.tenant, ref)
    if rule.state ~= "active" then M.rule_off{ message = "The rule is not active" } end
    return M.set_state(scope, rule, "disabled", reason)
end

function M.enable(scope, ref, reason)
    local rule = M.find(scope.tenant, ref)
    if rule.state ~= "disabled" and rule.state ~= "off" then M.rule_off() end
    local version = store.version(scope.tenant, rule.id, rule.active_version)
    local _, ends = window.of(version.settings)
    if ends and ends <= time.now() then M.rule_off{ message = "The window of the rule is over; publish it with another" } end
    if rule.state == "off" then
        examine.all(scope.tenant, rule, version, nil, { warnings = true }) -- it failed too often: everything has to be well first
    else
        local report = M.check(scope.tenant, { source = version.source, hook = rule.hook, settings = version.settings, key = rule.key })
        if not report.ok then M.check_failed{ details = { diagnostics = report.diagnostics } } end
    end
    return M.set_state(scope, rule, "active", reason)
end

function M.remove(scope, ref, reason)
    local rule = M.find(scope.tenant, ref)
    if rule.state == "active" then M.rule_active() end
    return M.set_state(scope, rule, "archived", reason)
end

local RESTORE_MS = 30 * 86400000

function M.restore(scope, ref, reason)
    local rule = M.find(scope.tenant, ref)
    if rule.state ~= "archived" then M.rule_off{ message = "The rule is not removed" } end
    if time.parse(rule.archived_at) + RESTORE_MS < time.now() then M.too_late() end
    if store.count(scope.tenant) >= RULES_MAX then M.rule_limit() end
    return M.set_state(scope, rule, rule.last_version > 0 and "disabled" or "draft", reason)
end

--- The red switch: all rules, or those of one hook, stop at once; the built-ins take over.
---@param scope Scope
---@param hook string|nil
---@param reason string
---@param on boolean
---@return {paused: integer, hooks: string[]} paused: live rules that stand still now; hooks: whose ("*": all)
function M.pause(scope, hook, reason, on)
    local now = time.iso(time.now())
    local statements = { on and store.pause(scope, hook or "*", now) or store.resume(scope, hook, now), store.standing(scope.tenant) }
    audit.append(statements, scope, { action = on and "rules.pause" or "rules.resume", entity_type = "rule", after = { hook = hook or "*",
        reason = reason } })
    hooks.append_switch(statements, scope, hook or "*")
    local answers = db.pipeline(scope.tenant, statements)
    tell_live(scope.tenant)
    return { paused = answers[2][1].n, hooks = json.array(answers[1][1].paused) }
end

-- Draft sessions -----------------------------------------------------------------------------------------------------------------

function M.draft_session(scope, ref, minutes)
    local rule = M.find(scope.tenant, ref)
    local token, expires = drafts.open(scope.tenant, rule, minutes)
    return { token = token, header = drafts.HEADER, expiresAt = time.iso(expires) }
end

return M
