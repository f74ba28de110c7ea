//! What reading costs: at most four times the bytes read plus 64 KiB of memory, and time that does not grow
//! quadratically, also for files made to be expensive (K27, K28, T31, S40).

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Folder, Raw, array_head, entry, safetensors, str_bytes};
use tenure_weights::WeightStore;
use tenure_weights::gguf::Gguf;
use tenure_weights::safetensors::Safetensors;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promises are those of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are those of `System.dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Growing counts both places at once, as if it always moved; shrinking stays where it is.
        if size > layout.size() {
            PEAK.fetch_max(NOW.fetch_add(size, Relaxed) + size, Relaxed);
            NOW.fetch_sub(layout.size(), Relaxed);
        } else {
            NOW.fetch_sub(layout.size() - size, Relaxed);
        }
        // SAFETY: the caller's promises are those of `System.realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `read` and holds it to its memory and time. The counters are shared, hence one at a time.
fn measure<T>(what: &str, bytes: usize, most: Duration, read: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = Instant::now();
    let out = read();
    let took = start.elapsed();
    let peak = PEAK.load(Relaxed) - before;
    println!("{what}: {bytes} bytes read, {peak} at most held ({:.2}x), {took:?}", peak as f64 / bytes as f64);
    assert!(peak <= 4 * bytes + (64 << 10), "{what}: {peak} bytes held for {bytes} read");
    assert!(took <= most, "{what}: {took:?}");
    out
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn expensive_files_are_cheap() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());

    let k27 = Raw::new().kv("k", 9, [array_head(0, 64 << 20), vec![7; 64 << 20]].concat()).bytes();
    let file = measure("K27", k27.len(), SECOND, || Gguf::from_bytes(&k27)).unwrap();
    assert_eq!(file.metadata().array("k").unwrap().u8s().unwrap().len(), 64 << 20);
    drop((k27, file));

    let k28 = (0..60_000).fold(Raw::new(), |file, i| file.kv(format!("{i:x}"), 0, [1])).bytes();
    let file = measure("K28", k28.len(), SECOND, || Gguf::from_bytes(&k28)).unwrap();
    assert_eq!(file.metadata().len(), 60_000);
    assert!(file.metadata().value("e123").is_some());
    drop((k28, file));

    let mut t31 = Raw::new();
    for i in 0..30_000u64 {
        t31 = t31.info(format!("{i:x}"), &[8], 0, 32 * i);
    }
    let t31 = t31.data(32 * 30_000).bytes();
    let header = t31.len() - 32 * 30_000;
    // Tensor data is not read: the header alone counts.
    let file = measure("T31", header, SECOND, || Gguf::from_bytes(&t31)).unwrap();
    assert_eq!(file.find("7000").unwrap().spec().name, "7000");
    drop((t31, file));

    let tokens: Vec<u8> = (0..262_144).flat_map(|i| str_bytes(format!("{i}"))).collect();
    let vocabulary = Raw::new().kv("tokens", 9, [array_head(8, 262_144), tokens].concat()).bytes();
    let file = measure("262,144 tokens", vocabulary.len(), SECOND, || Gguf::from_bytes(&vocabulary)).unwrap();
    assert_eq!(file.metadata().strs("tokens").unwrap().nth(9_999), Some("9999"));
    drop((vocabulary, file));

    let entries: Vec<String> = (0..1_000_000).map(|i| entry(&format!("{i:x}"), "U8", "0", "0,0")).collect();
    let s40 = safetensors(format!("{{{}}}", entries.join(",")), 0);
    drop(entries);
    let file = measure("S40", s40.len(), 5 * SECOND, || Safetensors::from_bytes(&s40)).unwrap();
    assert_eq!(file.tensors().len(), 1_000_000);
    drop((s40, file));

    let pairs: Vec<String> = (0..200_000).map(|i| format!("\"{i:x}\":\"\"")).collect();
    let metadata = safetensors(format!("{{\"__metadata__\":{{{}}}}}", pairs.join(",")), 0);
    drop(pairs);
    let file =
        measure("200,000 metadata entries", metadata.len(), SECOND, || Safetensors::from_bytes(&metadata)).unwrap();
    assert_eq!(file.metadata().value("30d3f"), Some(""));
}

#[test]
fn a_count_reserves_nothing() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    // Just below what is refused as out of proportion: it must end as truncated, with nothing reserved for it.
    for file in [
        Raw::new().with(|f| f.n_kv = Some((256 << 20) / 14)).bytes(),
        Raw::new().with(|f| f.n_tensors = Some((256 << 20) / 33)).bytes(),
        Raw::new().kv("k", 9, array_head(8, (256 << 20) / 8)).bytes(),
        Raw::new().kv("k", 9, array_head(0, 256 << 20)).bytes(),
    ] {
        let e = measure("a large count", file.len(), SECOND, || Gguf::from_bytes(&file)).unwrap_err();
        assert!(e.kind().is_truncation(), "{e}");
    }
}

#[test]
fn a_large_sparse_file_is_not_read() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let folder = Folder::new();
    let header = Raw::new().info("t", &[1 << 30], 0, 0).header();
    let path = folder.write("sparse.gguf", &header);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(64 + (4 << 30)).unwrap();
    // The reader looks ahead by at most 64 KiB here.
    let store = measure("a tensor of 4 GiB", 64 << 10, SECOND, || WeightStore::open(&path)).unwrap();
    let mut end = [1; 16];
    store.read_at(store.find("t").unwrap(), (4 << 30) - 16, &mut end).unwrap();
    assert_eq!(end, [0; 16]);
}
