//! Chat templates against what transformers renders.
//!
//! `tests/golden/chat.py` wrote templates, conversations and texts.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;

use common::gguf::{File, Value};
use common::workspace;
use runner::{Chat, Date, Error, Fault, Message, Result, Source};
use serde_json::{Value as Json, json};

fn golden() -> Json {
    let json = std::fs::read(workspace("tests/golden/chat.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// A folder with these files, for as long as the test runs.
fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let source = Source::Folder(folder.path().to_owned());
    (folder, source)
}

fn config(template: &Json) -> Vec<u8> {
    let config = json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"});
    serde_json::to_vec(&config).unwrap()
}

fn chat(template: &str) -> Result<Chat> {
    Chat::load(&folder(&[("tokenizer_config.json", &config(&json!(template)))]).1)
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn hello() -> Vec<Message> {
    vec![message("user", "Hello")]
}

#[test]
fn conversations_are_written_as_the_reference_writes_them() {
    let golden = golden();
    let date: Date = golden["date"].as_str().unwrap().parse().unwrap();
    let text = |json: &Json| json.as_str().unwrap().to_owned();
    let conversations: Vec<Vec<Message>> = golden["conversations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|messages| {
            let each = messages.as_array().unwrap().iter();
            each.map(|m| Message { role: text(&m[0]), content: text(&m[1]) }).collect()
        })
        .collect();
    let templates = golden["templates"].as_array().unwrap();
    assert!(templates.len() >= 16);
    let mut wrong = Vec::new();
    for row in templates {
        let name = row["name"].as_str().unwrap();
        let chat = chat(row["template"].as_str().unwrap());
        for (messages, expected) in conversations.iter().zip(row["rendered"].as_array().unwrap()) {
            let rendered = match &chat {
                Ok(chat) => chat.render(messages, Some(date)),
                Err(error) => {
                    assert_eq!(expected["fails"], "TemplateSyntaxError", "{name}: {error}");
                    continue;
                }
            };
            match (rendered, expected) {
                (Ok(found), expected) if expected["text"] == found => {}
                (Err(Error::ChatRefused { message, .. }), expected)
                    if expected["refused"] == message => {}
                (Err(Error::ChatTemplate { .. }), expected) if !expected["fails"].is_null() => {}
                (found, expected) => {
                    wrong.push(format!("{name}: {found:#?}\n expected {expected:#?}"))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let load = |files: &[(&str, &[u8])]| {
        let (_folder, source) = folder(files);
        Chat::load(&source).map(|chat| chat.template().to_owned())
    };
    let own = config(&json!("own"));
    let named =
        json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    let named = config(&named);
    let processor = br#"{"chat_template": "processor"}"#;
    assert_eq!(load(&[("tokenizer_config.json", &own)]).unwrap(), "own");
    assert_eq!(load(&[("tokenizer_config.json", &named)]).unwrap(), "d");
    assert_eq!(load(&[("chat_template.json", processor)]).unwrap(), "processor");
    let both: [(&str, &[u8]); 2] =
        [("tokenizer_config.json", &own), ("chat_template.json", processor)];
    assert_eq!(load(&both).unwrap(), "own");
    let file: [(&str, &[u8]); 2] =
        [("tokenizer_config.json", &own), ("chat_template.jinja", b"file")];
    assert_eq!(load(&file).unwrap(), "file");

    let missing = |files: &[(&str, &[u8])]| match load(files).unwrap_err() {
        error @ Error::ChatTemplateMissing { .. } => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(missing(&[]).contains("looked for chat_template.jinja"));
    assert!(missing(&[("tokenizer_config.json", b"{}")]).contains("tokenizer_config.json"));
    let list = config(&json!([{"name": "rag", "template": "r"}]));
    assert!(
        missing(&[("tokenizer_config.json", &list)]).contains("found rag but none named default")
    );
    for bad in [&b"{"[..], b"[]", b"{\"chat_template\": 3}"] {
        let error = load(&[("tokenizer_config.json", bad)]).unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
    let error = load(&[("chat_template.jinja", b"\xff")]).unwrap_err();
    assert!(matches!(error, Error::Utf8 { .. }), "{error}");
}

#[test]
fn special_tokens_come_from_either_file() {
    let template = "{{ bos_token }}|{{ eos_token }}|{{ cls_token }}".as_bytes();
    let files: [(&str, &[u8]); 3] = [
        ("chat_template.jinja", template),
        ("tokenizer_config.json", br#"{"bos_token": {"content": "<b>"}, "eos_token": null}"#),
        ("special_tokens_map.json", br#"{"bos_token": "<x>", "eos_token": "<e>"}"#),
    ];
    let (_folder, source) = folder(&files);
    let chat = Chat::load(&source).unwrap();
    assert_eq!(chat.render(&hello(), None).unwrap(), "<b>|<e>|");
}

#[test]
fn gguf_files_hold_template_and_tokens() {
    let load = |change: &dyn Fn(&mut File)| {
        let mut file = File::default();
        let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        let template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}";
        file.set("tokenizer.ggml.tokens", Value::Texts(tokens))
            .set("tokenizer.ggml.bos_token_id", Value::U32(1))
            .set("tokenizer.ggml.eos_token_id", Value::U32(2))
            .set("tokenizer.chat_template", Value::Text(template.to_owned()));
        change(&mut file);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        Chat::load(&Source::Gguf(path))
    };
    assert_eq!(load(&|_| ()).unwrap().render(&hello(), None).unwrap(), "<s>Hello</s>");
    let error = load(&|file| {
        file.set("tokenizer.ggml.bos_token_id", Value::U32(3));
    });
    assert!(matches!(error.unwrap_err(), Error::Gguf { .. }));
    let error = load(&|file| {
        file.remove("tokenizer.chat_template")
            .set("tokenizer.chat_templates", Value::Texts(vec!["rag".to_owned()]));
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("`tokenizer.chat_template`, and found rag"), "{message}");
}

#[test]
fn a_date_is_asked_for_only_where_it_is_printed() {
    let printing = chat("{{ strftime_now('%d %b %Y') }}").unwrap();
    let error = printing.render(&hello(), None).unwrap_err();
    assert!(matches!(error, Error::ChatDate { .. }) && error.fault() == Fault::Request, "{error}");
    let date = "2024-07-26".parse().unwrap();
    assert_eq!(printing.render(&hello(), Some(date)).unwrap(), "26 Jul 2024");
    let other =
        chat("{% if strftime_now is defined %}{{ messages[0].content }}{% endif %}").unwrap();
    assert_eq!(other.render(&hello(), None).unwrap(), "Hello");
    let unknown = chat("{{ strftime_now('%Q') }}").unwrap();
    let error = unknown.render(&hello(), Some(date)).unwrap_err();
    assert!(error.to_string().contains("`%Q` is not known"), "{error}");
}

#[test]
fn templates_without_an_end_are_stopped() {
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let wide = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let long =
        "{% set a = 'xxxxxxxxxxxxxxxx' * 65536 %}{% for b in range(999) %}{{ a }}{% endfor %}";
    let nested = "{% set ns = namespace(a=[]) %}{% for b in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}{{ ns.a | tojson }}";
    let endless = "{{ [1] * 1000000000000 }}";
    let json = "{{ ([1] * 1000000000000) | tojson }}";
    for template in [deep, wide, long, nested, endless, json] {
        let error = chat(template).unwrap().render(&hello(), None).unwrap_err();
        assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
        assert_eq!(error.fault(), Fault::Model);
    }
    let error = chat(&"x".repeat((256 << 10) + 1)).unwrap_err();
    assert!(matches!(error, Error::FileTooLarge { .. }), "{error}");
}

/// As deep as size and steps let them be: the stack is not the bound.
#[test]
fn templates_may_nest_without_end() {
    let filled = |n: usize, tail: &str| {
        let set = |name: &str| {
            let (open, close) = ("[".repeat(50), "]".repeat(50));
            format!(
                "{{% for b in range({n}) %}}{{% set ns.{name} = {open}ns.{name}{close} %}}{{% endfor %}}"
            )
        };
        let template =
            format!("{{% set ns = namespace(a=[], b=[]) %}}{}{}{tail}", set("a"), set("b"));
        chat(&template).unwrap().render(&hello(), None)
    };
    assert_eq!(filled(8000, "{{ (ns.a ~ '') | length }}").unwrap(), "800002");
    for tail in [
        "{{ ns.a == ns.b }}",
        "{{ ns.a < ns.b }}",
        "{{ {ns.a: 1}[ns.b] }}",
        "{{ [ns.a, ns.b] | sort | length }}",
        "{{ [ns.a, ns.b] | unique | length }}",
        "{{ ns.a in [ns.b] }}",
    ] {
        drop(filled(8000, tail));
    }
    let sums = format!("{{{{ 1{} }}}}", "~1".repeat(130_000));
    assert_eq!(chat(&sums).unwrap().render(&hello(), None).unwrap().len(), 130_001);
    for (begin, link) in [("1", "|e"), ("a", ".a"), ("a", "[0]"), ("a", "()"), ("1", "+1")] {
        let links = link.repeat(250_000 / link.len());
        if let Ok(chat) = chat(&format!("{{{{ {begin}{links} }}}}")) {
            drop(chat.render(&hello(), None));
        }
    }
    let branches = format!("{{% if a %}}{}{{% endif %}}x", "{%elif a%}".repeat(26_000));
    assert_eq!(chat(&branches).unwrap().render(&hello(), None).unwrap(), "x");
}

#[test]
fn a_conversation_that_is_refused_is_the_request_s_fault() {
    let error = chat("{{ raise_exception('no ' + messages[0].role) }}").unwrap();
    let error = error.render(&[message("robot", "")], None).unwrap_err();
    assert_eq!(error.fault(), Fault::Request);
    assert!(error.to_string().ends_with("refuses the conversation: no robot"), "{error}");
}

/// Templates cut off or with a character changed: an error or a text, no panic.
#[test]
fn damaged_templates_are_survived() {
    let golden = golden();
    for row in golden["templates"].as_array().unwrap() {
        let template: Vec<char> = row["template"].as_str().unwrap().chars().collect();
        for at in (0..template.len()).step_by(37) {
            let cut: String = template[..at].iter().collect();
            let mut changed = template.clone();
            changed[at] = ['{', '}', '%', '|', '(', '\'', '-', '0'][at % 8];
            for template in [cut, changed.into_iter().collect()] {
                if let Ok(chat) = chat(&template) {
                    drop(chat.render(&hello(), None));
                }
            }
        }
    }
}
