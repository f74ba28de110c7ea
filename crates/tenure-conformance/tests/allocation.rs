//! A decoded token allocates nothing on the heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tenure::{Deadline, Engine, GenerateOptions, LoadOptions, Prompt, SamplerParams, TextOptions};
use tenure_conformance::fixture;

struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(usize::from(COUNTING.load(Ordering::Relaxed)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(usize::from(COUNTING.load(Ordering::Relaxed)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// Without the test harness, whose own thread allocates when it likes.
fn main() {
    let engine = Engine::auto().expect("cpu");
    for (file, check_activations) in
        [("llama-blocks.gguf", false), ("gemma3-f32.gguf", false), ("llama-blocks.gguf", true)]
    {
        let options = TextOptions { batch: 32, check_activations, ..TextOptions::default() };
        let model = engine.load_text_with(fixture(file), &options, &LoadOptions::default()).expect("loads");
        // The pool that loaded the weights ends its threads behind our back.
        std::thread::sleep(Duration::from_millis(300));
        let mut session = model.session().expect("free");
        for sampler in [SamplerParams::greedy(), SamplerParams::default()] {
            let options = GenerateOptions { sampler, ignore_eos: true, ..GenerateOptions::default() };
            let prompt = Prompt::Tokens((0..40).map(|i| i % 250).collect());
            let mut generation = session.generate_with(prompt, options).expect("begins");
            let deadline = Deadline::after(Duration::from_secs(60));
            // The prompt and the first tokens may bring buffers to their size.
            for _ in 0..4 {
                generation.next(deadline).expect("runs");
            }
            CALLS.store(0, Ordering::Relaxed);
            COUNTING.store(true, Ordering::Relaxed);
            for _ in 0..100 {
                let piece = generation.next(deadline);
                assert!(matches!(piece, Ok(Some(_))));
            }
            COUNTING.store(false, Ordering::Relaxed);
            assert_eq!(CALLS.load(Ordering::Relaxed), 0, "{file}");
        }
    }
    println!("a decoded token allocates nothing: ok");
}
