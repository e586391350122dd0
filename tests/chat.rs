//! Prompts that go through a chat template, and special tokens in prompts.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ran, files, root, run};

/// The built-in model's folder with a chat template, in a folder of its own.
fn model(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(root().join("assets/tiny-mixtral").join(name), model.join(name)).unwrap();
    }
    if !template.is_empty() {
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    }
    folder
}

/// Captures logits of the prompts into `folder/run`.
fn capture(folder: &Path, words: &[&str]) -> Ran {
    let start = ["capture", "--quiet", "--hook", "logits", "--positions", "last", "--model"];
    let paths = [folder.join("model"), "--out".into(), folder.join("run")];
    let words = words.iter().map(PathBuf::from);
    run(start.iter().map(PathBuf::from).chain(paths).chain(words))
}

fn rows(folder: &Path, table: &str) -> Vec<Value> {
    let run_folder = folder.join("run");
    let words = ["show", run_folder.to_str().unwrap(), table, "--rows", "1000", "--json"];
    run(words).code(0).json()["rows"].as_array().unwrap().clone()
}

/// The values of one column.
fn column<'a>(rows: &'a [Value], columns: &[&str], name: &str) -> Vec<&'a Value> {
    let place = columns.iter().position(|column| *column == name).unwrap();
    rows.iter().map(|row| if row.is_array() { &row[place] } else { &row[name] }).collect()
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

#[test]
fn a_response_follows_the_beginning_of_an_answer() {
    let folder = model(TEMPLATE);
    let prompts = folder.path().join("p.jsonl");
    let lines = concat!(
        "{\"text\": \"1 + 2\", \"response\": \"3\"}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"1 + 2\"}]}\n"
    );
    std::fs::write(&prompts, lines).unwrap();
    capture(folder.path(), &["--chat", "--prompts", prompts.to_str().unwrap()]).code(0);
    let prompts = rows(folder.path(), "prompts");
    let columns = ["prompt", "text", "n_tokens", "n_cut", "n_context"];
    let texts = column(&prompts, &columns, "text");
    assert_eq!(texts, ["<bos><user>1 + 2<eos><assistant>3", "<bos><user>1 + 2<eos><assistant>"]);
    // What the response follows is the prompt without it.
    let tokens = column(&prompts, &columns, "n_tokens");
    let context = column(&prompts, &columns, "n_context");
    assert_eq!(context, [tokens[1], &Value::Null]);
    assert!(tokens[0].as_u64() > tokens[1].as_u64());
}

#[test]
fn a_text_is_a_message_and_messages_are_taken_as_they_are() {
    let folder = model(TEMPLATE);
    let prompts = folder.path().join("p.jsonl");
    let lines = concat!(
        "{\"id\": \"text\", \"text\": \"1 + 2\"}\n",
        "{\"id\": \"talk\", \"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}]}\n"
    );
    std::fs::write(&prompts, lines).unwrap();
    capture(folder.path(), &["--chat", "--prompts", prompts.to_str().unwrap()]).code(0);
    let prompts = rows(folder.path(), "prompts");
    let texts = column(&prompts, &["prompt", "text", "n_tokens", "n_cut"], "text");
    let expected =
        ["<bos><user>1 + 2<eos><assistant>", "<bos><system>s<eos><user>u<eos><assistant>"];
    assert_eq!(texts, expected);
    // The template's BOS is the only one.
    let tokens = rows(folder.path(), "tokens");
    let columns = ["prompt", "position", "token_id", "token", "start", "end"];
    let tokens = column(&tokens, &columns, "token");
    assert_eq!(tokens.iter().filter(|token| **token == "<bos>").count(), 2, "{tokens:?}");
    let conversation = column(&prompts, &["prompt", "text", "n_tokens", "n_cut"], "prompt");
    assert_eq!(conversation, ["text", "talk"]);
}

#[test]
fn without_a_template_or_without_the_option_nothing_is_guessed() {
    let folder = model("");
    let ran = capture(folder.path(), &["--chat", "--prompt", "1 + 2"]).code(3);
    assert!(ran.stderr.contains("looked for chat_template.jinja"), "{}", ran.stderr);
    let talk = folder.path().join("p.jsonl");
    std::fs::write(&talk, "{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}]}").unwrap();
    let ran = capture(folder.path(), &["--prompts", talk.to_str().unwrap()]).code(2);
    assert!(ran.stderr.contains("add --chat"), "{}", ran.stderr);
    std::fs::write(
        &talk,
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
    )
    .unwrap();
    let ran = capture(folder.path(), &["--chat", "--prompts", talk.to_str().unwrap()]).code(2);
    assert!(ran.stderr.contains("message 1: a list of 1 parts (image)"), "{}", ran.stderr);
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1]").unwrap();
    capture(folder.path(), &["--chat", "--token-ids", ids.to_str().unwrap()]).code(2);
    capture(folder.path(), &["--chat", "--no-bos", "--prompt", "1"]).code(2);
    capture(folder.path(), &["--date", "2026-11-23", "--prompt", "1"]).code(2);
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_template_that_refuses_is_heard() {
    let folder = model("{{ raise_exception('only robots') }}");
    let ran = capture(folder.path(), &["--chat", "--prompt", "1"]).code(2);
    assert!(
        ran.stderr.contains("prompt `0`") && ran.stderr.contains("only robots"),
        "{}",
        ran.stderr
    );
    let folder = model("{% for %}");
    let ran = capture(folder.path(), &["--chat", "--prompt", "1"]).code(3);
    assert!(ran.stderr.contains("the chat template fails"), "{}", ran.stderr);
}

#[test]
fn the_day_is_part_of_the_job() {
    let folder = model("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}");
    let ran = capture(folder.path(), &["--chat", "--prompt", "1 + 2"]).code(2);
    assert!(ran.stderr.contains("--date 2026-11-23"), "{}", ran.stderr);
    let day = |date| ["--chat", "--date", date, "--prompt", "1 + 2"];
    capture(folder.path(), &day("2024-02-30")).code(2);
    capture(folder.path(), &day("2024-02-29")).code(0);
    let prompts = rows(folder.path(), "prompts");
    let texts = column(&prompts, &["prompt", "text", "n_tokens", "n_cut"], "text");
    assert_eq!(texts, ["29 Feb 2024: 1 + 2"]);
    let before = files(&folder.path().join("run"));
    capture(folder.path(), &day("2024-02-29")).code(0);
    let ran = capture(folder.path(), &day("2024-03-01")).code(2);
    assert!(ran.stderr.contains("chat"), "{}", ran.stderr);
    assert_eq!(files(&folder.path().join("run")), before, "nothing was changed");
}

#[test]
fn special_tokens_in_a_prompt_are_parsed_or_plain() {
    let folder = model(TEMPLATE);
    let prompt = ["--prompt", "1 <eos> 2", "--no-bos"];
    let tokens = || {
        let rows = rows(folder.path(), "tokens");
        let columns = ["prompt", "position", "token_id", "token", "start", "end"];
        let tokens = column(&rows, &columns, "token");
        tokens.iter().map(|token| token.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    capture(folder.path(), &prompt).code(0);
    assert!(tokens().contains(&"<eos>".to_owned()), "{:?}", tokens());
    // Another choice is another job.
    let plain = [&prompt[..], &["--special", "plain"]].concat();
    let ran = capture(folder.path(), &plain).code(2);
    assert!(ran.stderr.contains("special_tokens_in_text"), "{}", ran.stderr);
    std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    capture(folder.path(), &plain).code(0);
    assert!(!tokens().contains(&"<eos>".to_owned()), "{:?}", tokens());
    let ran = capture(folder.path(), &["--special", "plain", "--chat", "--prompt", "1"]).code(2);
    assert!(ran.stderr.contains("--special plain"), "{}", ran.stderr);
}
