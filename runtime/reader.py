"""The public object: open a bundle, look at a film once, ask as often as you like."""

from __future__ import annotations

import codecs
import hashlib
import os
import time
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from radvlm_edge.bundle import PHRASES, Bundle, demo_bundle
from radvlm_edge.errors import BackendError, QuestionError, StudyCacheError
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.answer import Answer, Timing
from radvlm_edge.runtime.choices import Choice, choice_tokens, choose
from radvlm_edge.runtime.confidence import decision_tokens, of_choice, temperature_of
from radvlm_edge.runtime.detail import Detail, capped, resolve
from radvlm_edge.runtime.drafting import Phrases
from radvlm_edge.runtime.film import Film, load_film
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.limits import check_fidelity, combination
from radvlm_edge.runtime.options import TEXT_ROOM, Options
from radvlm_edge.runtime.overlap import Ahead, Coming, Prepared, pays
from radvlm_edge.runtime.prefill_choice import Prefilling, open_prefill
from radvlm_edge.runtime.recall import Recall
from radvlm_edge.runtime.studies import StudyStore, open_store
from radvlm_edge.runtime.study import Looked, Study
from radvlm_edge.runtime.vision import DEFAULT_ENGINE, VisionTower, available_cpus
from radvlm_edge.runtime.vision_choice import Chosen
from radvlm_edge.runtime.vision_fallback import open_for

__all__ = ["Answer", "Options", "Reader", "Study"]


class Reader:
    """A loaded bundle. Not thread-safe: one answer is written at a time."""

    def __init__(
        self,
        bundle: Bundle,
        tower: VisionTower,
        language: LanguageModel,
        options: Options,
        load_ms: float,
        store: StudyStore | None = None,
        prefilling: Prefilling | None = None,
    ) -> None:
        self.bundle = bundle
        self.tower = tower
        self.options = options
        self.load_ms = load_ms
        self.fidelity = "not measured"
        self.chosen: Chosen | None = None
        """Why this tower; `None` for one the caller made."""
        self.prefilling = prefilling or Prefilling("llama.cpp", "not asked for")
        self.engine_note: str | None = None
        """Which engine runs vision and why, where there is a GPU to speak of."""
        self.vision_artefact = bundle.artefact("vision", options.vision)
        self.language_artefact = bundle.artefact("language", options.language)
        precisions = self.vision_artefact.precision, self.language_artefact.precision
        self.temperature = temperature_of(bundle, combination(*precisions))
        self._decision = decision_tokens(lambda text: language.tokenize(text, special=False))
        self._language = language
        self._newline = np.load(bundle.folder / "vision" / "image_newline.npy")
        self._writing: Answer | None = None
        self._ahead: tuple[str, Ahead[Prepared]] | None = None
        self._phrases = Phrases(self._known_answers) if options.drafts else None
        head, _ = prompts.render([prompts.Turn("?")], bundle.manifest.prompting)
        self._recall = Recall(
            language,
            language.tokenize(head),
            memory_bytes=options.study_memory,
            store=store,
            facts=self._facts(),
        )

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str] | None = None,
        options: Options | None = None,
        *,
        verify: bool = True,
        ahead: str | os.PathLike[str] | None = None,
    ) -> Reader:
        """Verify a bundle's digests and load it (`None`: the demonstration bundle).

        `ahead`: a film that `look` will be given next, read and cut while the weights are opened. What is
        wrong with it is for `look` to raise. No thread of it is left when this returns.

        Files found as sealed before that look unchanged are not hashed again (`Bundle.check`).
        Raises BundleError for a bundle that is not what was sealed or whose answers were measured beyond
        its limits, BackendError if an engine cannot load an artefact (with a study cache, `look` raises it
        for the tower, which is opened when it is needed), StudyCacheError for a study cache that cannot be
        used.
        """
        began = time.perf_counter()
        options = options or Options()
        folder = folder or demo_bundle()
        reading = None
        if ahead is not None and options.overlap is not False and (options.overlap or available_cpus() > 1):
            reading = Ahead(partial(_prepare, ahead, options, folder), "film")
        try:
            reader = cls._open(folder, options, verify=verify)
        finally:
            if reading is not None:
                reading.wait()  # while a DICOM file is read nothing can be written to stderr
        if ahead is not None and reading is not None:
            reader._ahead = os.fspath(ahead), reading
        reader.load_ms = (time.perf_counter() - began) * 1e3
        return reader

    @classmethod
    def _open(cls, folder: str | os.PathLike[str], options: Options, *, verify: bool) -> Reader:
        store = open_store(
            options.study_cache,
            limit_bytes=options.study_cache_limit,
            days=options.study_cache_days,
            key_file=options.study_cache_key,
        )
        if store is not None and not verify:
            raise StudyCacheError(
                f"{options.study_cache}: studies are kept under their bundle's digests, which were not "
                "checked; open the bundle with verify=True"
            )
        if options.phrases is not None and not options.phrases.is_file():
            raise BackendError(
                f"{options.phrases}: no such file of phrases; give a text file, an answer a line"
            )
        bundle = Bundle.open(folder)
        vision = bundle.artefact("vision", options.vision)
        language = bundle.path(bundle.artefact("language", options.language))
        if verify:
            bundle.check()
        fidelity = check_fidelity(bundle, options)
        geometry = capped(bundle.manifest.geometry, resolve(options.detail))
        context = options.context or min(geometry.context, geometry.max_image_tokens + TEXT_ROOM)
        tower, chosen, note = open_for(
            bundle, vision, options.threads, options.vision_backend, late=store is not None
        )
        model = LanguageModel(
            language,
            context=context,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            flash_attention=options.flash_attention,
            kv_type=options.kv_type,
        )
        try:
            model.split, prefilling = open_prefill(
                bundle,
                model.engine,
                wanted=options.prefill_backend,
                precision=options.prefill,
                language=bundle.artefact("language", options.language).precision,
                threads=options.threads,
            )
        except BaseException:
            model.close()
            raise
        if model.split is not None and fidelity != "not measured":
            fidelity += " with llama.cpp's own prefill"
        reader = cls(bundle, tower, model, options, 0.0, store, prefilling)
        reader.chosen = chosen
        reader.fidelity = fidelity
        if chosen.backend != DEFAULT_ENGINE and fidelity != "not measured":
            reader.fidelity += " (measured in ONNX Runtime)"
        reader.engine_note = note
        return reader

    def close(self) -> None:
        """Free the engines; studies of this reader cannot be asked any more."""
        self._language.close()
        free = getattr(self.tower, "close", None)  # engines on a GPU hold its memory
        if free is not None:
            free()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(
        self, source: str | os.PathLike[str] | bytes | BinaryIO | Film, *, detail: Detail = None
    ) -> Study:
        """Read a film (path, content, file, or `Film`), encode it and prefill its image tokens, once.

        `detail`: `exact`, or the most pixels its long side is shown in; `None`: as the options say. With a
        study cache, nothing is encoded or prefilled for a film kept there. Raises FilmError for a film that
        cannot be read, DetailError for a detail the model does not have, StudyCacheError for a film kept
        under another key.
        """
        detail_px = resolve(detail, resolve(self.options.detail))
        geometry = capped(self.bundle.manifest.geometry, detail_px)
        self._settle()
        marks = [time.perf_counter()]

        def lap() -> float:
            marks.append(time.perf_counter())
            return (marks[-1] - marks[-2]) * 1e3

        already = self._prepared(source)
        film = source if isinstance(source, Film) else already.film if already else self._load(source)
        decode_ms = lap()
        if already is not None and already.geometry == geometry:
            views, layout = already.views, already.layout
        else:
            views, layout = crops.cut(film.pixels, geometry)
        looked = Looked(decode_ms, lap())
        prefix = len(self._recall.head) + layout.image_tokens
        if prefix + self.options.max_tokens > self._language.context:
            raise QuestionError(
                f"the film's {layout.image_tokens} image tokens and {self.options.max_tokens} for an answer "
                f"do not fit the context of {self._language.context} tokens; raise the context, or lower "
                "--detail or --max-tokens"
            )
        study = Study(self, film, layout, looked, prefix, detail_px)
        found = self._recall.find(study, views)
        cache_ms = lap()
        if not found:
            if self._overlaps():
                with Coming(self.tower, views, layout, self._newline) as coming:
                    looked.prefill_ms = self._recall.prefill(study, coming)
                study.encoded = coming.whole()
                looked.vision_ms = coming.waited_ms
                looked.overlapped_ms = max(0.0, coming.worked_ms - coming.waited_ms)
            else:
                study.encoded = self._encode(views, layout)
                looked.vision_ms = lap()
                looked.prefill_ms = self._recall.prefill(study)
            looked.prefill_by_ms = dict(self._language.spent_ms)
            lap()
            self._recall.keep(study)
            cache_ms += lap()
        if study.cache != "off":
            looked.cache_ms = cache_ms
        return study

    def _encode(self, views: npt.NDArray[np.uint8], layout: crops.Layout) -> npt.NDArray[np.float32]:
        """Image tokens `[t, d]` of crops `[n, 3, S, S]`."""
        return anyres.pack(self.tower.encode(views), layout, self._newline)

    def _known_answers(self) -> Iterable[list[int]]:
        """Token ids of answers to guess from."""
        files = [self.bundle.folder / PHRASES, self.options.phrases]
        for path in (one for one in files if one is not None and one.exists()):
            for line in path.read_text(encoding="utf-8").splitlines():
                yield self._language.tokenize(line, special=False)

    def vision_plan(self) -> dict[str, object]:
        """How the tower runs, and why so; for provenance."""
        plan = self.tower.plan
        why = self.chosen.why if self.chosen else "by the caller"
        return {"threads": plan.threads, "crops_per_batch": plan.crops_per_batch, "chosen": why}

    def _facts(self) -> dict[str, object]:
        """What a film's K/V depends on besides the film and the engines."""
        return {
            "bundle": self.bundle.sha256,
            "vision": self.vision_artefact.sha256,
            "vision backend": self.tower.backend,
            "language": self.language_artefact.sha256,
            "newline": hashlib.sha256(self._newline.tobytes()).hexdigest(),
        }

    def _load(self, source: str | os.PathLike[str] | bytes | BinaryIO) -> Film:
        return _read_film(source, self.options, self.bundle)

    def _prepared(self, source: str | os.PathLike[str] | bytes | BinaryIO | Film) -> Prepared | None:
        """The film read while the weights were opened, once. Raises FilmError if it could not be."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or not isinstance(source, (str, os.PathLike)) or os.fspath(source) != ahead[0]:
            return None
        return ahead[1].result()

    def _overlaps(self) -> bool:
        """Whether crops are encoded while the language model prefills."""
        if self.options.overlap is not None:
            return self.options.overlap
        return pays(
            vision_on_cpu="CPU" in self.tower.backend.upper(),
            language_on_cpu=not self._language.engine.on_gpu,
        )

    def _settle(self) -> None:
        """Finish the answer being written: it needs the K/V state as it is."""
        if self._writing is not None:
            self._writing.finish()
            self._writing = None

    def _answer(
        self, study: Study, turns: list[prompts.Turn], question: str, max_tokens: int | None
    ) -> Answer:
        question = prompts.check_question(question, self.bundle.manifest.prompting)
        limit = self._limit(max_tokens)
        self._settle()
        self._recall.resume(study)
        ids = self._tail(turns, question, limit)
        continuing = turns is study.turns

        def write() -> Generator[str, None, None]:
            yield from self._write(answer, study, ids, limit, reuse=continuing and bool(turns))
            if continuing:
                study.turns.append(prompts.Turn(question, "".join(answer._pieces).strip()))

        answer = Answer(study, question, write, study.prefix_tokens + len(ids))
        self._writing = answer
        return answer

    def _answer_many(self, study: Study, questions: Sequence[str], max_tokens: int | None) -> list[Answer]:
        prompting = self.bundle.manifest.prompting
        questions = [prompts.check_question(question, prompting) for question in questions]
        if len(questions) < 2:
            return [self._answer(study, [], question, max_tokens).finish() for question in questions]
        limit = self._limit(max_tokens)
        self._settle()
        self._recall.resume(study)
        tails = [self._tail([], question, limit) for question in questions]
        written = self._language.write_together(
            tails, stop_ids=prompting.stop_ids, max_tokens=limit, watched=self._decision
        )
        written[0].prefilled += study.uncharged_tokens
        written[0].prefill_ms += study.uncharged_ms
        study.uncharged_tokens, study.uncharged_ms = 0, 0.0
        texts = [b"".join(map(self._language.piece, one.ids)).decode("utf-8", "replace") for one in written]
        prompt = [study.prefix_tokens + len(tail) for tail in tails]
        return [Answer._of(study, *one) for one in zip(questions, texts, written, prompt, strict=True)]

    def _choose(self, study: Study, question: str, choices: Sequence[str]) -> Choice:
        return self._choose_many(study, [question], choices)[0]

    def _choose_many(self, study: Study, questions: Sequence[str], choices: Sequence[str]) -> list[Choice]:
        questions = [prompts.check_question(one, self.bundle.manifest.prompting) for one in questions]
        tokens = choice_tokens(choices, lambda text: self._language.tokenize(text, special=False))
        if not questions:
            return []
        self._settle()
        self._recall.resume(study)
        tails = [self._tail([], one, sum(map(len, tokens.values()))) for one in questions]
        began = time.perf_counter()
        if len(tails) == 1:  # the very batches it has always been
            scores, run = self._language.score(tails[0], list(tokens.values()))
            found = [scores]
        else:
            found, run = self._language.score_together(tails, list(tokens.values()))
        took_ms = ((time.perf_counter() - began) * 1e3 + study.uncharged_ms) / len(tails)
        run += study.uncharged_tokens
        study.uncharged_tokens, study.uncharged_ms = 0, 0.0
        decided = []
        for question, tail, logprobs in zip(questions, tails, found, strict=True):
            text, shares, mass = choose(tokens, logprobs)
            prompt = study.prefix_tokens + len(tail)
            confidence, calibrated = of_choice(shares, study.temperature)
            decided.append(Choice(question, text, shares, mass, run, took_ms, confidence, calibrated, prompt))
            run = 0  # all of it was counted with the first
        return decided

    def _margin(self, begun: Sequence[int], watched: Sequence[float]) -> float | None:
        """How far Yes and No (logits `watched`) were apart, of an answer that begins with one of them."""
        if not begun or begun[0] not in self._decision:
            return None
        return watched[0] - watched[1]

    def _limit(self, max_tokens: int | None) -> int:
        limit = self.options.max_tokens if max_tokens is None else max_tokens
        if limit < 1:
            raise QuestionError(f"--max-tokens is {limit}; at least 1 is needed")
        return limit

    def _tail(self, turns: list[prompts.Turn], question: str, limit: int) -> list[int]:
        """Token ids behind the image. Raises QuestionError if they and the answer do not fit the context."""
        _, tail = prompts.render([*turns, prompts.Turn(question)], self.bundle.manifest.prompting)
        ids = self._language.tokenize(tail)
        self._language.check_room(len(ids), limit)
        return ids

    def _write(
        self, answer: Answer, study: Study, ids: list[int], limit: int, *, reuse: bool
    ) -> Generator[str, None, None]:
        began = time.perf_counter()
        answer._prefilled = self._language.prefill(ids, reuse=reuse) + study.uncharged_tokens
        prefill_ms = (time.perf_counter() - began) * 1e3 + study.uncharged_ms
        study.uncharged_tokens, study.uncharged_ms = 0, 0.0
        stop_ids: Sequence[int] = self.bundle.manifest.prompting.stop_ids
        text = codecs.getincrementaldecoder("utf-8")("replace")
        first_ms = decode_ms = 0.0
        answer._stop = "length"
        for step in self._language.steps(stop_ids=stop_ids, max_tokens=limit, phrases=self._phrases):
            if not answer._logprobs and step.token in self._decision:
                logits = self._language.logits()  # the token was chosen and not run yet
                answer._margin = self._margin([step.token], [float(logits[id]) for id in self._decision])
            answer._logprobs.append(step.logprob)
            if first_ms:
                decode_ms += step.decode_ms
            else:
                first_ms = prefill_ms + step.decode_ms
            answer._timing = Timing(prefill_ms, first_ms, decode_ms)
            if step.token in stop_ids:
                answer._stop = "eos"
                break
            answer._ids.append(step.token)
            if piece := text.decode(self._language.piece(step.token)):
                yield piece
        if rest := text.decode(b"", final=True):
            yield rest


def _read_film(source: str | os.PathLike[str] | bytes | BinaryIO, options: Options, bundle: Bundle) -> Film:
    """A film as the options, or else its bundle, say."""
    return load_film(
        source,
        render=options.render or bundle.manifest.render,
        any_modality=options.any_modality,
        frame=options.frame,
    )


def _prepare(source: str | os.PathLike[str], options: Options, folder: str | os.PathLike[str]) -> Prepared:
    """A film read and cut as `Reader.look` would; needs of its bundle only what it says about itself."""
    bundle = Bundle.open(folder)
    film = _read_film(source, options, bundle)
    geometry = capped(bundle.manifest.geometry, resolve(options.detail))
    return Prepared(film, geometry, *crops.cut(film.pixels, geometry))
