//! Requests of batch files: what is followed row by row, what is told, and what is refused.

use crate::place::{bundled, read, Place};
use serde_json::json;
use std::fs;

#[test]
fn what_is_not_followed_is_told_once() {
    let Some(place) = Place::new() else { return };
    let row = |extra: serde_json::Value| {
        let mut body = json!({"model": "m", "prompt": "The file", "max_tokens": 3});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"custom_id": "r", "url": "/v1/completions", "body": body}).to_string() + "\n"
    };
    let rows = [
        json!({"temperature": 0, "top_p": 1, "n": 1}),
        json!({"temperature": 0.7, "n": 3}),
        json!({"temperature": 0.9, "logprobs": true}),
    ];
    let input = place.write("requests.jsonl", rows.map(row).concat());
    let end = place.run_job("generate", 2, &bundled("lm"), &input, "out.h5", "--dtype f32");
    end.says(&[
        "requests.jsonl, line 2: `temperature`: 0.7 is not followed (2 rows ask for one of its own; --temperature is for all rows)",
        "requests.jsonl, line 2: `n`: 3 is not followed (1 row asks for one of its own)",
        "requests.jsonl, line 3: `logprobs`: true is not followed (1 row asks for one of its own; --scores is for all rows)",
    ]);
    assert_eq!(end.stderr.matches("is not followed").count(), 3, "{end:#?}");
    end.ok();
    let flags = "--dtype f32 --overwrite --temperature 0.9 --scores";
    let end = place.run_job("generate", 1, &bundled("lm"), &input, "out.h5", flags);
    assert_eq!(end.stderr.matches("is not followed").count(), 2, "{end:#?}");
    end.says(&["line 1: `temperature`: 0 is"]);
    // What decides warnings only is no part of the job's identity.
    let flags = "--dtype f32 --temperature 0.8 --scores";
    let end = place.run_job("generate", 1, &bundled("lm"), &input, "out.h5", flags);
    end.refused(&["  sampling.temperature: 0.9 there, 0.8 now"]);
    assert!(!end.stderr.contains("  reading: "), "{end:#?}");

    let rows = [
        json!({"max_length": 30, "early_stopping": false, "min_length": 0, "tools": []}),
        json!({"max_length": 31, "early_stopping": "never", "min_length": 2, "tools": [{"name": "f"}]}),
        json!({"prompt": [1], "tools": [{"name": "g"}]}),
    ];
    let input = place.write("lengths.jsonl", rows.map(row).concat());
    let flags = "--dtype f32 --max-length 30";
    let end = place.run_job("generate", 1, &bundled("lm"), &input, "lengths.h5", flags);
    end.says(&[
        "line 2: `max_length`: 31 is not followed (1 row asks for one of its own; --max-length is for all rows)",
        "line 2: `early_stopping`: \"never\" is not followed",
        "line 2: `min_length`: 2 is not followed",
        "line 2: `tools`: [{\"name\":\"f\"}] is not followed (2 rows have it beside a prompt that is no chat: only",
    ]);
    assert_eq!(end.stderr.matches("is not followed").count(), 4, "{end:#?}");
}

#[test]
fn chats_in_parts_and_with_tools_go_through_the_template() {
    let Some(place) = Place::new() else { return };
    let model = place.path("lm");
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(bundled("lm")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let template = |text: &str| fs::write(model.join("chat_template.jinja"), text).unwrap();
    template("{{ tools[0].name }}{% for m in messages %}{{ m.content }}{% endfor %}");
    let parts = json!([{"type": "text", "text": " fi"}, {"type": "text", "text": "le"}]);
    let chat = json!({"messages": [{"role": "user", "content": parts}], "tools": [{"name": "The"}]});
    let input = place.write("chat.jsonl", format!("{chat}\n{{\"prompt\": \"The file\"}}\n"));
    let flags = "--dtype f32 --max-new-tokens 5 --overwrite";
    place.run_job("generate", 1, &model, &input, "out.h5", flags).ok();
    let rows = read(&place.path("out.h5"));
    assert_eq!(rows[0].output, rows[1].output);

    template("{# no tools #}{% for m in messages %}{{ m.content }}{% endfor %}");
    let end = place.run_job("generate", 1, &model, &input, "out.h5", flags);
    end.refused(&["chat.jsonl, line 1", "does not read `tools`", "leave `tools` out"]);
    let nothing = json!({"tools": [], "documents": null, "x": null, "tool": 1});
    let asks_nothing = json!({"messages": [{"role": "user", "content": "The file"}], "chat_template_kwargs": nothing});
    let input = place.write("nothing.jsonl", format!("{asks_nothing}\n"));
    let end = place.run_job("generate", 1, &model, &input, "out.h5", flags);
    end.says(&["line 1: the chat template does not read `tool`"]);
    assert_eq!(end.stderr.matches("does not read").count(), 1, "{end:#?}");
    end.ok();
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]});
    let input = place.write("image.jsonl", format!("\n{image}\n"));
    let end = place.run_job("generate", 1, &model, &input, "out.h5", flags);
    end.refused(&["line 2", "`image_url`", "only text is read"]);
}

#[test]
fn a_rows_own_limit_goes_before_one_that_nobody_gave() {
    let Some(place) = Place::new() else { return };
    let row = |most: Option<u32>| json!({"prompt": "The file", "max_tokens": most}).to_string() + "\n";
    let lengths = |rows: &[Option<u32>], ranks: usize, flags: &str| {
        let input = place.write("in.jsonl", rows.iter().map(|most| row(*most)).collect::<String>());
        let flags = format!("--dtype f32 --overwrite --min-new-tokens 4 {flags}");
        let end = place.run_job("generate", ranks, &bundled("lm"), &input, "out.h5", &flags);
        assert_eq!((end.code, end.errors()), (0, 0), "{end:#?}");
        let rows = read(&place.path("out.h5")).into_iter().map(|row| row.ids);
        (rows.collect::<Vec<_>>(), end.stderr)
    };
    let (alone, _) = lengths(&[None], 1, "");
    for ranks in [1, 2] {
        let (ids, said) = lengths(&[Some(160), None, Some(5)], ranks, "");
        assert_eq!(ids.iter().map(Vec::len).collect::<Vec<_>>(), [160, 128, 5]);
        assert!(
            ids[0].starts_with(&ids[1]) && ids[1] == alone[0] && !said.contains("goes before"),
            "{said}"
        );
    }
    for (flags, wanted) in [
        (
            "--max-new-tokens 20",
            "line 1: an output of up to 160 tokens is asked for; --max-new-tokens 20 goes before",
        ),
        (
            "--max-length 24",
            "line 1: an output of up to 160 tokens is asked for; --max-length 24 goes before",
        ),
    ] {
        let (ids, said) = lengths(&[Some(160), None, Some(5)], 1, flags);
        assert!(
            ids[0].len() <= 24 && ids[0] == ids[1] && ids[2].len() == 5,
            "{flags}: {ids:?}"
        );
        assert!(said.contains(wanted), "{said}");
    }
}
