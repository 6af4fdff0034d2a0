//! What a step of a model is made of, in order.

use super::plan::Epilogue;
use super::program::{Buffers, Phase, Uses};
use super::{Decoder, Parts};
use crate::cuda::family::rotation_of;
use crate::cuda::memory::Span;
use crate::cuda::weights::{DeviceMatrix, DeviceModel};
use crate::error::Result;

/// Every product of a model with what surrounds it.
pub(super) fn products(model: &DeviceModel) -> Vec<(&[DeviceMatrix], Epilogue)> {
    let one = std::slice::from_ref::<DeviceMatrix>;
    let mut list: Vec<_> = model
        .layers
        .iter()
        .flat_map(|l| {
            [
                (&l.qkv[..], Epilogue::Store),
                (one(&l.o), Epilogue::Residual),
                (&l.gate_up[..], Epilogue::Swiglu),
                (one(&l.down), Epilogue::Residual),
            ]
        })
        .collect();
    list.push((one(&model.head), Epilogue::Logits));
    list
}

/// A whole step, and behind it the head alone with a prompt's input.
pub(super) fn phases(decoder: &Decoder, parts: &Parts<'_>) -> Result<Vec<Phase>> {
    let Parts {
        config: c,
        model,
        state: s,
        cache,
        ..
    } = *parts;
    let one = std::slice::from_ref::<DeviceMatrix>;
    let address = |span: Option<Span>| span.map_or(0, Span::ptr);
    let mut list = Vec::with_capacity(5 * c.layers + 2);
    for (i, layer) in model.layers.iter().enumerate() {
        // The norm behind `down`, and that behind the next `o`.
        let following = model.layers.get(i + 1);
        let next_norm = following.map_or(Some(model.norm), |l| l.norms.before_attention);
        let uses = |output| Uses {
            input: Some(i),
            output,
        };
        list.push(decoder.product(
            &layer.qkv,
            Epilogue::Store,
            &Buffers {
                x: s.hidden[0].ptr(),
                sums: s.square_sums[0].ptr(),
                next_norm: address(layer.biases.qkv),
                out: s.qkv.ptr(),
                ..Buffers::default()
            },
            uses(i),
        )?);
        let attention = Buffers {
            x: s.qkv.ptr(),
            sums: s.attention_parts.ptr(),
            out: s.attended.ptr(),
            ..Buffers::default()
        };
        let attention = Phase::attention(cache.layer(i), cache.capacity, &attention, uses(i));
        let scales = cache.scales(c, i).unwrap_or_default();
        // A window that no sequence outgrows is none.
        let window = c.windows.layer(i).filter(|w| *w < c.max_positions);
        let qk_norm = layer.qk_norm.map_or([0; 2], |norms| norms.map(Span::ptr));
        let attention = attention.of_layer(window.unwrap_or(0), rotation_of(c, i), qk_norm);
        list.push(attention.scaled(scales));
        let of_attention = decoder.product(
            one(&layer.o),
            Epilogue::Residual,
            &Buffers {
                x: s.attended.ptr(),
                sums: s.product_sums[0].ptr(),
                next_norm: address(next_norm),
                out: s.hidden[1].ptr(),
                out_sums: s.square_sums[1].ptr(),
            },
            uses(i),
        )?;
        list.push(of_attention.normed(address(layer.norms.after_attention)));
        list.push(decoder.product(
            &layer.gate_up,
            Epilogue::Swiglu,
            &Buffers {
                x: s.hidden[1].ptr(),
                sums: s.square_sums[1].ptr(),
                out: s.activated.ptr(),
                ..Buffers::default()
            },
            uses(i),
        )?);
        let of_mlp = decoder.product(
            one(&layer.down),
            Epilogue::Residual,
            &Buffers {
                x: s.activated.ptr(),
                sums: s.product_sums[1].ptr(),
                next_norm: address(following.and_then(|l| l.norms.before_mlp)),
                out: s.hidden[0].ptr(),
                out_sums: s.square_sums[0].ptr(),
            },
            uses(i + 1),
        )?;
        list.push(of_mlp.normed(address(layer.norms.after_mlp)));
    }
    let head = |x: Span, sums: Span, input| {
        let buffers = Buffers {
            x: x.ptr(),
            sums: sums.ptr(),
            out: s.logits.ptr(),
            out_sums: s.best.ptr(),
            ..Buffers::default()
        };
        let uses = Uses { input, output: 0 };
        decoder.product(one(&model.head), Epilogue::Logits, &buffers, uses)
    };
    list.push(head(s.hidden[0], s.square_sums[0], Some(c.layers))?);
    list.push(head(s.last_hidden, s.last_square_sums, None)?);
    Ok(list)
}
