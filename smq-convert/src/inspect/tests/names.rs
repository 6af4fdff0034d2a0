//! The names of fields and columns, which others read.

use smq_format::statistics::{OutputError, Receipt};

use super::*;

/// Names in JSON are an interface: change them only with `REPORT_VERSION`.
#[test]
fn json_fields_are_the_documented_ones() {
    let value = serde_json::to_value(report()).unwrap();
    let keys = |v: &serde_json::Value| {
        let mut keys: Vec<&str> = v.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys.join(" ")
    };
    assert_eq!(
        keys(&value),
        "embedded_files header output_errors path provenance receipts report_version schemes sizes \
         statistics tensors totals"
    );
    assert_eq!(
        keys(&value["header"]),
        "compatible_feature_bits file_bytes incompatible_feature_bits index statistics version"
    );
    assert_eq!(
        keys(&value["header"]["index"]),
        "blake3 length_bytes offset_bytes"
    );
    assert_eq!(
        keys(&value["provenance"]["sources"][0]),
        "blake3 length_bytes name"
    );
    assert_eq!(
        keys(&value["embedded_files"][0]),
        "blake3 length_bytes name offset_bytes"
    );
    assert_eq!(
        keys(&value["sizes"]),
        "bits_per_quantized_weight bits_per_weight_in_file embedded_bytes file_bytes \
        file_of_source_percent header_bytes index_bytes nibble_bytes padding_bytes \
        quantized_elems raw_bytes scale_bytes scale_f16_bytes scale_savings_vs_f16_percent \
        source_tensor_bytes statistics_bytes total_elems"
    );
    assert_eq!(
        keys(&value["schemes"][0]),
        "dtype elems group_elems scale_bits scale_format scheme stored_bytes tensors"
    );
    assert_eq!(value["statistics"], serde_json::json!({"state": "present"}));
    assert_eq!(
        keys(&value["totals"]),
        "clipped_percent clipped_weights exact_mean_cosine exact_mean_rel_mse exact_sqnr_db \
        groups max_rel_mse mean_cosine mean_rel_mse scale_format_cost_percent sqnr_db tensors \
        under_window_scales zero_groups"
    );
    let tensor = &value["tensors"][1];
    assert_eq!(
        keys(tensor),
        "bits_per_weight blobs elems errors group_elems groups layer name \
        output_error projection scale_bias scale_bytes scale_format scale_rule scheme shape source_bytes \
        source_dtype stored_bytes"
    );
    assert_eq!(
        keys(&tensor["blobs"][0]),
        "blake3 length_bytes offset_bytes role"
    );
    assert_eq!(
        keys(&tensor["errors"]),
        "block_rows clipped_weights exact exponent_counts first_exponent row_block_mean_rel_mse \
        scale_format_cost_percent stored under_window_scales zero_groups"
    );
    assert_eq!(
        keys(&tensor["errors"]["stored"]),
        "max_rel_mse mean_cosine mean_rel_mse p50_rel_mse p90_rel_mse p999_rel_mse \
        p99_rel_mse sqnr_db squared_error squared_weight"
    );
    assert_eq!(value["tensors"][0]["errors"], serde_json::Value::Null);
    assert_eq!(tensor["scale_format"], "e5m5");
}

#[test]
fn what_calibrated_and_measured_files_have_is_named() {
    let mut statistics = statistics();
    statistics.tensors[0].output = Some(OutputError {
        rounded: 0.5,
        stored: 0.25,
        is_rounded: false,
    });
    statistics.tensors[1].output = Some(OutputError {
        rounded: 0.125,
        stored: 0.125,
        is_rounded: true,
    });
    statistics.receipts.push(Receipt {
        text: "<held>.txt".to_owned(),
        blake3: [1; 32],
        window: 512,
        tokens_scored: 511,
        mean_kl: 0.25,
        kl_stderr: 0.125,
        perplexity: 6.0,
        base_perplexity: 5.0,
        top1_agreement: 0.75,
    });
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), Some(&statistics));
    let report = Report::of(&SmqFile::open(&path).unwrap());
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(
        value["output_errors"],
        serde_json::json!({
            "tensors": 2,
            "rounded_tensors": 1,
            "median_rounded": 0.125,
            "median_stored": 0.125,
            "max_rounded": 0.5,
            "max_stored": 0.25,
        })
    );
    assert_eq!(
        value["tensors"][1]["output_error"],
        serde_json::json!({"rounded": 0.5, "stored": 0.25, "is_rounded": false})
    );
    assert_eq!(
        value["receipts"],
        serde_json::json!([{
            "text": "<held>.txt",
            "blake3": "01".repeat(32),
            "window_tokens": 512,
            "tokens_scored": 511,
            "mean_kl_nats": 0.25,
            "kl_stderr_nats": 0.125,
            "perplexity": 6.0,
            "base_perplexity": 5.0,
            "top1_agreement_percent": 75.0,
        }])
    );
    let page = page(&report).unwrap();
    assert!(page.contains("511 tokens of &lt;held&gt;.txt"));
    assert!(!page.contains("<held>"));
    let table = output_table(&report, 1);
    assert!(table.starts_with("output errors of 1 of 2 calibrated tensors (--top 0 shows all)"));
    assert!(table.contains("1 stored rounded to nearest"), "{table}");
}

#[test]
fn csv_has_a_row_a_tensor() {
    let report = report();
    let text = String::from_utf8(csv(&report.tensors.iter().collect::<Vec<_>>()).unwrap()).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "name,layer,projection,shape,source_dtype,scheme,scale_format,scale_rule,scale_bias,\
         group_elems,elems,groups,source_bytes,stored_bytes,scale_bytes,bits_per_weight,\
         mean_rel_mse,p50_rel_mse,p90_rel_mse,p99_rel_mse,p999_rel_mse,max_rel_mse,mean_cosine,\
         sqnr_db,exact_mean_rel_mse,exact_max_rel_mse,exact_mean_cosine,exact_sqnr_db,\
         scale_format_cost_percent,clipped_weights,under_window_scales,zero_groups,\
         output_error_rounded,output_error_stored,output_is_rounded"
    );
    assert_eq!(
        lines.next().unwrap(),
        format!(
            "norm.weight,,norm,128,bf16,raw,,,,,128,0,256,256,0,16.0{}",
            ",".repeat(19)
        )
    );
    let up = lines.next().unwrap();
    let start = "model.layers.0.mlp.up.weight,0,model.layers.*.mlp.up,4x256,bf16,int4-e5mx,e5m5,,\
                 32,128,1024,8,2048,531,19,";
    assert!(up.starts_with(start), "{up}");
    assert_eq!(lines.count(), 3);
}
