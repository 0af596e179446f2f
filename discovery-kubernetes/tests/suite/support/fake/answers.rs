//! Answers of the fake API server: paged lists, watches with chunked events, bookmarks, expired versions.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    time::{Instant, sleep, sleep_until},
};

use super::{
    BOOKMARKS, Fake, GZIP_FROM, Logged, Mode, ROLES, TOO_LARGE, WatchFault,
    http::{Request, chunk, paced, read, whole, with_head, zipped},
};

impl Fake {
    /// Serves a connection until it ends.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let mut epoch = self.0.epoch.subscribe();
        epoch.mark_unchanged();
        if self.state().mode == Mode::Down {
            return;
        }
        let mut stream = BufReader::new(stream);
        tokio::select! {
            _ = epoch.changed() => {}
            _ = self.answer_all(&mut stream) => {}
        }
    }

    async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>) -> io::Result<()> {
        while let Some(request) = read(stream).await? {
            let is_watch = request.query.contains_key("watch");
            let verb = if is_watch { "watch" } else { "list" };
            let mode = {
                let mut state = self.state();
                state.requests.push((Instant::now(), request.line.clone()));
                state.user_agent.clone_from(&request.user_agent);
                state.zipped_watches += usize::from(is_watch && request.accepts_gzip);
                let is_new = !state.knows_roles && state.started_at.is_some_and(|at| at.elapsed() < ROLES);
                let is_refused = is_new || state.refused_namespace == Some(request.namespace.as_str());
                if is_refused { Mode::Refuses { verb: "", code: 403, body: None } } else { state.mode.clone() }
            };
            if mode == Mode::Hangs {
                return std::future::pending().await;
            }
            let (token, wanted) = (request.token.clone(), self.state().token.clone());
            if wanted.is_some() && token != wanted {
                let body = status(401, "Unauthorized").to_string();
                whole(stream, 401, &body).await?;
                continue;
            }
            if let Mode::Refuses { verb: refused, code, body } = mode
                && (refused.is_empty() || refused == verb)
            {
                let (resource, namespace) = (&request.resource, &request.namespace);
                let message = format!(
                    "{resource} is forbidden: User \"system:serviceaccount:{namespace}:users-sa\" cannot {verb} \
                     resource \"{resource}\" in the namespace \"{namespace}\""
                );
                let body = body.map_or_else(|| status(code, &message).to_string(), str::to_owned);
                whole(stream, code, &body).await?;
                continue;
            }
            if let Mode::Overloaded { seconds } = mode {
                with_head(stream, 429, &format!("Content-Type: text/plain\r\nRetry-After: {seconds}\r\n"), "slow down")
                    .await?;
                continue;
            }
            match (is_watch, request.name.is_empty()) {
                (true, _) => self.watch(stream, &request).await?,
                (false, true) => {
                    let (takes, pace) = {
                        let state = self.state();
                        (state.list_delay, state.list_pace)
                    };
                    sleep(takes).await;
                    let (code, body) = self.list(&request);
                    match pace {
                        Some((bytes, pause)) => paced(stream, &body, bytes, pause).await?,
                        None if request.accepts_gzip && body.len() >= GZIP_FROM => {
                            let bytes = zipped(stream, &body).await?;
                            self.state().list_bytes += bytes;
                        }
                        None => {
                            self.state().list_bytes += body.len();
                            whole(stream, code, &body).await?;
                        }
                    }
                }
                (false, false) => {
                    let found = self.get(&request.resource, &request.namespace, &request.name);
                    let (code, body) = found.map_or((404, status(404, "not found")), |object| (200, object));
                    whole(stream, code, &body.to_string()).await?;
                }
            }
        }
        Ok(())
    }

    fn list(&self, request: &Request) -> (u16, String) {
        let mut state = self.state();
        let limit = request.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let (version, from) = match request.query.get("continue").and_then(|token| token.split_once(':')) {
            Some((version, from)) => (version.parse().unwrap(), from.parse().unwrap()),
            None => {
                let version = state.version.max(1);
                let here = |key: &(String, String, String)| key.0 == request.resource && key.1 == request.namespace;
                let matching = state.objects.iter().filter(|(key, value)| here(key) && request.selects(value));
                let all = matching.map(|(_, value)| value.clone()).collect();
                state.snapshots.insert(version, all);
                (version, 0_usize)
            }
        };
        if from > 0 && state.forgets_pages > 0 {
            state.forgets_pages -= 1;
            // A list must not be combined from two, because an object of the first page may be deleted meanwhile.
            let last = state.deleted_with_pages.take();
            state.objects.retain(|key, _| Some(&key.2) != last.as_ref());
            return (410, status(410, "the provided continue parameter is too old").to_string());
        }
        let all = state.snapshots.get(&version).cloned().unwrap_or_default();
        let page: Vec<_> = all.iter().skip(from).take(limit).cloned().collect();
        let to = from + page.len();
        let is_last = to >= all.len() && !state.is_endless;
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if !is_last {
            metadata["continue"] = json!(format!("{version}:{to}"));
        }
        let kind = if request.resource == "pods" { "PodList" } else { "EndpointSliceList" };
        // Go writes an empty list as null.
        let items = if page.is_empty() { Value::Null } else { Value::Array(page) };
        (200, json!({ "kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items }).to_string())
    }

    async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        request: &Request,
    ) -> io::Result<()> {
        let mut changed = self.0.changed.subscribe();
        let parameter = |name: &str| request.query.get(name).map(String::as_str).unwrap_or_default();
        let is_initial = parameter("sendInitialEvents") == "true" && self.state().supports_initial_events;
        if parameter("sendInitialEvents") == "true" && !is_initial {
            let body =
                status(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled");
            return whole(stream, 422, &body.to_string()).await;
        }
        let mut version: u64 = parameter("resourceVersion").parse().unwrap_or(0);
        let (is_gone, as_status, is_refused, fault) = {
            let mut state = self.state();
            let is_gone = !is_initial && version < state.compacted;
            let is_refused = state.refuses_future && version > state.version;
            (is_gone, state.gone_is_a_status, is_refused, state.watch_faults.pop_front())
        };
        if is_refused {
            return whole(stream, 504, TOO_LARGE).await;
        }
        if is_gone && as_status {
            return whole(stream, 410, &status(410, "too old resource version").to_string()).await;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        stream.flush().await?;
        let _open = Open::new(self);
        if is_gone {
            chunk(stream, &json!({ "type": "ERROR", "object": status(410, "too old") }).to_string()).await?;
            return stream.write_all(b"0\r\n\r\n").await;
        }
        match &fault {
            Some(WatchFault::Silent) => {
                stream.fill_buf().await?;
                return Ok(());
            }
            Some(WatchFault::EndsAtOnce) => return stream.write_all(b"0\r\n\r\n").await,
            Some(WatchFault::BeginsWith(lines) | WatchFault::BreaksAfter(lines)) => {
                for line in lines {
                    chunk(stream, line).await?;
                }
                if matches!(fault, Some(WatchFault::BreaksAfter(_))) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
            _ => {}
        }
        if is_initial {
            let (all, now) = self.initial(request);
            for object in all {
                chunk(stream, &json!({ "type": "ADDED", "object": object }).to_string()).await?;
            }
            chunk(stream, &bookmark(&request.resource, now, true)).await?;
            version = now;
        }
        let seconds = parameter("timeoutSeconds").parse().unwrap_or(300);
        let end_at = Instant::now() + Duration::from_secs(seconds);
        let every = self.state().bookmarks_every.unwrap_or(BOOKMARKS);
        // A real server sends the last bookmark 2 s before the end.
        let last_at = end_at.checked_sub(Duration::from_secs(2)).filter(|at| *at > Instant::now());
        let after = |at: Instant| last_at.filter(|last| *last > at).map_or(at + every, |last| last.min(at + every));
        let mut bookmark_at = after(Instant::now());
        loop {
            // A watch from a version of the future is silent.
            let (events, now) = self.events(request, version);
            version = version.max(now);
            for line in events {
                match fault {
                    Some(WatchFault::BreaksWithinEvent) => {
                        let half = &line[..line.len() / 2];
                        stream.write_all(format!("{:x}\r\n{half}", line.len() + 1).as_bytes()).await?;
                        stream.flush().await?;
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    Some(WatchFault::BreaksAfterEvent) => {
                        chunk(stream, &line).await?;
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    _ => chunk(stream, &line).await?,
                }
            }
            tokio::select! {
                _ = changed.changed() => {}
                // The client sends nothing during a watch, so a readable stream is at its end.
                _ = stream.fill_buf() => return Ok(()),
                () = sleep_until(end_at) => return stream.write_all(b"0\r\n\r\n").await,
                () = sleep_until(bookmark_at) => {
                    bookmark_at = after(bookmark_at);
                    let (now, is_mute) = {
                        let state = self.state();
                        (state.version, state.sends_no_bookmarks)
                    };
                    if now >= version && !is_mute {
                        version = now;
                        chunk(stream, &bookmark(&request.resource, version, false)).await?;
                    }
                }
            }
        }
    }

    /// Returns the matching objects and the current version.
    fn initial(&self, request: &Request) -> (Vec<Value>, u64) {
        let state = self.state();
        let here = |key: &(String, String, String)| key.0 == request.resource && key.1 == request.namespace;
        let all = state.objects.iter().filter(|(key, value)| here(key) && request.selects(value));
        (all.map(|(_, value)| value.clone()).collect(), state.version)
    }

    /// Returns the events since a version, and the current version.
    fn events(&self, request: &Request, since: u64) -> (Vec<String>, u64) {
        let state = self.state();
        let new = state.log.iter().filter(|logged| {
            logged.version > since && logged.resource == request.resource && logged.namespace == request.namespace
        });
        let line = |logged: &Logged| {
            let (is_in, was_in) =
                (request.selects(&logged.object), logged.before.as_ref().is_some_and(|b| request.selects(b)));
            let kind = match (is_in, was_in) {
                (true, _) => logged.kind,
                (false, true) => "DELETED",
                (false, false) => return None,
            };
            Some(json!({ "type": kind, "object": logged.object }).to_string())
        };
        (new.filter_map(line).collect(), state.version)
    }
}

/// An open watch in the count of open watches.
struct Open(Fake);

impl Open {
    fn new(fake: &Fake) -> Self {
        let mut state = fake.state();
        state.open_watches += 1;
        state.most_watches = state.most_watches.max(state.open_watches);
        drop(state);
        Self(fake.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state().open_watches -= 1;
    }
}

/// Returns a Status object.
fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        504 => "Timeout",
        _ => "Unknown",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code })
}

/// Returns a bookmark event.
fn bookmark(resource: &str, version: u64, ends_initial: bool) -> String {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if ends_initial {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    // The object is of the type of the resource, so a pod has lists that are null.
    let spec = json!({ "containers": null });
    json!({ "type": "BOOKMARK", "object": { "kind": resource, "metadata": metadata, "spec": spec } }).to_string()
}
