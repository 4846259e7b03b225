//! The commands that the documents show, against the binary and the Makefile.

use super::{cli, documents, fenced, text};

#[test]
fn every_command_shown_is_one_that_the_binary_takes() {
    let mut shown = Vec::new();
    for document in documents() {
        let text = text(&document);
        let mut lines = fenced(&text, "sh");
        // Those within sentences too.
        lines.extend(text.split('`').skip(1).step_by(2).map(str::to_owned));
        shown.extend(
            lines
                .into_iter()
                .filter(|line| line.starts_with("status-indexer ") && !line.contains(['<', '.']))
                .map(|line| (document.clone(), line)),
        );
    }
    assert!(shown.len() >= 20, "{shown:?}");
    for (document, line) in shown {
        let line = line.split('#').next().expect("a line has a start");
        let outcome = cli()
            .mut_args(|arg| arg.env(None::<&str>))
            .try_get_matches_from(line.split_whitespace());
        let taken = match outcome {
            Ok(_) => true,
            Err(error) => !error.use_stderr(),
        };
        assert!(taken, "{document}: {line}");
    }
}

#[test]
fn every_make_target_shown_exists() {
    let makefile = text("Makefile");
    let mut count = 0;
    for document in documents() {
        let text = text(&document);
        for rest in text.split("make ").skip(1) {
            let word: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            let after = &rest[word.len()..];
            // In code, not in a sentence.
            let code = ["`", " BENCH=", " DURATION=", " PREFIX=", "    #"];
            if !word.is_empty() && code.iter().any(|start| after.starts_with(start)) {
                let target = format!("\n{word}:");
                assert!(makefile.contains(&target), "{document}: make {word}");
                count += 1;
            }
        }
    }
    assert!(count >= 10, "{count}");
}
