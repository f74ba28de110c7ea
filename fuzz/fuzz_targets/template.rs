//! Any text as a chat template: it is refused, or answers within its budget.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenure_tokenizer::{ChatTemplate, Conversation, Message};

fuzz_target!(|input: (String, Vec<(String, String)>, bool)| {
    let (source, messages, add_generation_prompt) = input;
    let Ok(template) = ChatTemplate::new(&source) else { return };
    let messages: Vec<Message> = messages.into_iter().map(|(role, content)| Message::new(role, content)).collect();
    // Whatever it says, an answer or a typed error: what is looked for here is a panic, a hang or a full memory.
    let _ = template.render(&Conversation {
        messages: &messages,
        add_generation_prompt,
        bos_token: "<s>",
        eos_token: "</s>",
        extra: Default::default(),
        now: std::time::UNIX_EPOCH,
    });
});
