//! Chat templates: what real ones need, and what malformed and hostile ones get.

use std::time::{Duration, Instant, UNIX_EPOCH};

use tenure_tokenizer::{BudgetLimit, ChatTemplate, Conversation, Message, TemplateError};

fn render_with(source: &str, messages: &[Message], extra: serde_json::Value) -> Result<String, TemplateError> {
    let serde_json::Value::Object(extra) = extra else { panic!("an object") };
    ChatTemplate::new(source)?.render(&Conversation {
        messages,
        add_generation_prompt: true,
        bos_token: "<s>",
        eos_token: "</s>",
        extra,
        now: UNIX_EPOCH + Duration::from_secs(1_721_952_000),
    })
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [Message::system("Be brief."), Message::user("Hello, \"you\" & <all>!")];
    render_with(source, &messages, serde_json::json!({}))
}

fn failure(source: &str) -> TemplateError {
    match render(source) {
        Err(error) => error,
        Ok(text) => panic!("rendered {} bytes", text.len()),
    }
}

fn is_syntax(error: &TemplateError) -> bool {
    matches!(error, TemplateError::TemplateError { .. })
}

#[test]
fn chatml() {
    let source = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(
        render(source).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello, \"you\" & <all>!<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn llama3_style() {
    let source = "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{{- \"Today Date: \" + strftime_now(\"%d %b %Y\") + \"\\n\\n\" }}\n{{- system_message }}\n{{- \"<|eot_id|>\" }}\n{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";
    assert_eq!(
        render(source).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello, \"you\" & <all>!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn gemma_style_with_alternation_check() {
    let source = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}";
    assert_eq!(
        failure(source),
        TemplateError::TemplateRaised { message: "Conversation roles must alternate user/assistant".into() }
    );
}

#[test]
fn blocks_are_trimmed_and_generation_tags_leave_no_trace() {
    let source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.role }}:\n    {%- generation -%}\n  {{ m.content[:5] }}\n  {%- endgeneration %}\n\n  {% endif %}\n{% endfor %}end\n";
    assert_eq!(render(source).unwrap(), "user:Hello\nend");
    assert_eq!(render("{% generation %}\na{% endgeneration %}b").unwrap(), "ab");
    assert_eq!(render("{% raw %}{% generation %}{{ x }}{% endraw %}").unwrap(), "{% generation %}{{ x }}");
    assert_eq!(render("{{ '{% generation %}' }}").unwrap(), "{% generation %}");
}

#[test]
fn json_is_as_python_writes_it() {
    let tools = serde_json::json!({"tools": [{"name": "f", "arguments": {"x": [1, 2.5, true, null], "s": "a<b>'\"é\n"}}], "nothing": {}});
    let text = render_with(
        "{{ tools | tojson }}|{{ nothing | tojson }}|{{ tools[0].arguments.x | tojson(indent=2) }}",
        &[],
        tools,
    )
    .unwrap();
    assert_eq!(
        text,
        "[{\"name\": \"f\", \"arguments\": {\"x\": [1, 2.5, true, null], \"s\": \"a<b>'\\\"é\\n\"}}]|{}|[\n  1,\n  2.5,\n  true,\n  null\n]"
    );
}

#[test]
fn python_operators_methods_and_filters() {
    let cases = [
        (
            "{{ 1 + 2 }} {{ 2 * 3 }} {{ 1.5 + 1 }} {{ 'ab' * 3 }} {{ 'a' ~ 1 ~ true ~ none }}",
            "3 6 2.5 ababab a1TrueNone",
        ),
        ("{{ ([1] + [2, 3]) | length }} {{ ([0] * 3) | join(',') }}", "3 0,0,0"),
        (
            "{{ 'hello'[1:3] }} {{ 'hello'[::-1] }} {{ 'hello'[-3:] }} {{ 'hello'[:-1] }} {{ [1,2,3,4][::2] | join }}",
            "el olleh llo hell 13",
        ),
        (
            "{{ 'a,b'.split(',')[1] }} {{ 'x'.upper() }} {{ ' y '.strip() }} {{ 'aXa'.replace('a', 'b') }} {{ '-'.join(['p','q']) }}",
            "b X y bXb p-q",
        ),
        (
            "{{ 'abc'.startswith('ab') }} {{ {'k': 1}.get('k') }} {% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
            "True 1 z1a2",
        ),
        (
            "{{ 'hello world' | title }} {{ 'ABC' | capitalize }} {{ 'a b' | replace(' ', '_') }} {{ 'x\ny' | indent(2) }}",
            "Hello World Abc a_b x\n  y",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }} {{ range(5, 0, -2) | list | join(' ') }}",
            "6 5 3 1",
        ),
        (
            "{{ messages | map(attribute='role') | join(' ') }} {{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content[:5] }}",
            "system user Hello",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ m.role }}{{ loop.last }}{% endfor %}", "userTrue"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') + f('b') }}", "[a][b]"),
        ("{{ missing }}{{ missing is defined }}{{ messages[0].missing is defined }}", "FalseFalse"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
    ];
    for (source, text) in cases {
        assert_eq!(render(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn no_steps_are_taken_beyond_the_budget() {
    for source in [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% set x = i %}{% endfor %}{% for i in range(100000) %}{% set x = i %}{% endfor %}",
    ] {
        let start = Instant::now();
        let error = failure(source);
        // The budget for a release build is 50 ms; tests are not optimised and share the machine.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(matches!(error, TemplateError::TemplateBudget(BudgetLimit::Steps(_))), "{error:?}");
    }
}

#[test]
fn ranges_and_slices_reach_the_ends_of_their_numbers() {
    let far = "{{ range(-9223372036854775807, 9223372036854775807, 4611686018427387904) | list | length }}";
    assert_eq!(render(far).unwrap(), "4");
    assert_eq!(
        render("{% set s = 'äbcde' %}{{ s[1:] }} {{ s[::-2] }} {{ s[-2:9223372036854775807] }}").unwrap(),
        "bcde ecä de"
    );
    assert_eq!(render("{{ [1, 2, 3][::-1] }} {{ 'abc'[0:3:9223372036854775807] }}").unwrap(), "[3, 2, 1] a");
    // A long text is sliced in about its own size.
    assert_eq!(render("{% set s = 'a' * 500000 %}{{ s[1:] | length }}").unwrap(), "499999");
}

#[test]
fn no_bytes_are_made_beyond_the_budget() {
    let times = |n: usize, s: &str| s.repeat(n);
    for source in [
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = s ~ s %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = s + s %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = s * 2 %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s %}{{ s }}{{ s }}{% endset %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = [s, s] | join %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = s | replace('a', s) %}")),
        format!("{{% set s = 'abcdefgh' %}}{}{{{{ s }}}}", times(40, "{% set s = s.replace('a', s) %}")),
        format!("{{% set s = '\"' %}}{}{{{{ s }}}}", times(40, "{% set s = s | tojson %}")),
        format!("{{% set s = [1] %}}{}{{{{ s | length }}}}", times(40, "{% set s = s + s %}")),
        format!("{{% set s = [1] %}}{}{{{{ s }}}}", times(40, "{% set s = [s, s] %}")),
        "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% else %}{{ s }}{% endif %}{% endmacro %}{{ f('abcdefgh', 40) }}".into(),
        "{{ 'a' * 100000000 }}".into(),
        "{{ 'a' * 10 ** 8 }}".into(),
        "{{ ['a' * 99999 * 999] }}".into(),
        "{% set n = 10 ** 12 %}{{ 'a' * n }}".into(),
        "{% set n = 99999999 %}{{ [1] * n }}".into(),
    ] {
        let start = Instant::now();
        let error = failure(&source);
        let shown = &source[..source.len().min(80)];
        assert!(matches!(error, TemplateError::TemplateBudget(BudgetLimit::Bytes(_))), "{shown}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{shown}: {:?}", start.elapsed());
    }
}

#[test]
fn depth_is_refused_and_no_stack_overflows() {
    let nest = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let sources = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        nest("{% if true %}", "{% endif %}", 10_000),
        nest("{% for i in range(1) %}", "{% endfor %}", 10_000),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(500), "]".repeat(500)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(100_000)),
        format!("{{{{ x{} }}}}", ".y".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ x{} }}}}", "|trim".repeat(100_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(50_000)),
    ];
    let small = std::thread::Builder::new().stack_size(512 << 10);
    let done = small.spawn(move || {
        for source in &sources {
            let error = failure(source);
            assert_eq!(error, TemplateError::TemplateTooDeep, "{}", &source[..source.len().min(60)]);
        }
    });
    done.unwrap().join().unwrap();
}

#[test]
fn what_is_deep_but_allowed_has_room() {
    let sources = [
        format!("{{{{ 0{} }}}}", " + 1".repeat(2000)),
        format!("{{{{ x{} }}}}", " ~ x".repeat(2000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(500)),
        format!("{{{{ {}1 }}}}", "not ".repeat(4000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(60), ")".repeat(60)),
        "{% set ns = namespace(l=[]) %}{% for i in range(15000) %}{% set ns.l = [ns.l] %}{% endfor %}done".to_owned(),
    ];
    let small = std::thread::Builder::new().stack_size(512 << 10);
    let done = small.spawn(move || {
        for source in &sources {
            let result = render(source);
            assert!(result.is_ok(), "{}: {result:?}", &source[..source.len().min(60)]);
        }
    });
    done.unwrap().join().unwrap();
}

#[test]
fn deep_values_that_are_shown_or_compared_do_not_overflow() {
    let deep = "{% set ns = namespace(l=[], m=[]) %}{% for i in range(15000) %}{% set ns.l = [ns.l] %}{% set ns.m = [ns.m] %}{% endfor %}";
    for end in [
        "{{ ns.l }}",
        "{{ ns.l ~ '' }}",
        "{{ ns.l == ns.m }}",
        "{{ ns.l | tojson }}",
        "{{ [ns.l, ns.m] | sort | length }}",
    ] {
        // Whether it is shown or refused is the interpreter's choice; the process lives.
        if let Err(error) = render(&format!("{deep}{end}")) {
            assert!(
                matches!(error, TemplateError::TemplateTooDeep | TemplateError::TemplateBudget(_)),
                "{end}: {error:?}"
            );
        }
    }
}

#[test]
fn malformed_templates_say_where() {
    for (source, line) in [
        ("a\nb\n{{ x | nosuchfilter }}", 3),
        ("{% if x is nosuchtest %}{% endif %}", 1),
        ("\n{% for %}", 2),
        ("\n\n\n{{ x", 4),
        ("{{ '", 1),
        ("{% endif %}", 1),
        ("{% nosuchtag %}", 1),
        ("\n{{ nosuchfunction() }}", 2),
    ] {
        match failure(source) {
            TemplateError::TemplateError { line: got, .. } => assert_eq!(got, line, "{source}"),
            other => panic!("{source}: {other:?}"),
        }
    }
    assert!(is_syntax(&ChatTemplate::new(&"x".repeat(100 << 20)).unwrap_err()));
    assert!(ChatTemplate::new("").is_ok());
}

#[test]
fn nothing_but_the_conversation_can_be_reached() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% extends 'base.html' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{{ open('/etc/passwd') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ debug() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.__class__.__base__ }}",
        "{{ 'x'.format(messages) }}",
    ] {
        match render(source) {
            Err(error) => assert!(is_syntax(&error), "{source}: {error:?}"),
            Ok(text) => assert_eq!(text, "", "{source}"),
        }
    }
    assert!(
        matches!(failure("{{ raise_exception('no ' ~ 1) }}"), TemplateError::TemplateRaised { message } if message == "no 1")
    );
}

#[test]
fn messages_bring_their_own_fields() {
    let mut call = Message::assistant("");
    call.extra.insert("tool_calls".into(), serde_json::json!([{"function": {"name": "f", "arguments": {"a": 1}}}]));
    let source = "{% for m in messages %}{% for t in m.tool_calls %}{{ t.function.name }}{{ t.function.arguments | tojson }}{% endfor %}{% endfor %}";
    assert_eq!(render_with(source, &[call], serde_json::json!({})).unwrap(), "f{\"a\": 1}");
}
