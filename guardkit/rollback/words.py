"""What is said to and for the model in the user's language: the request to reflect, how that begins, a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardkit.coverage import guess_language
from guardkit.messages import Message
from guardkit.verdict import Stage

QUESTION_CHARS = 4000  # of a question that the request to reflect repeats, its end


@dataclass(frozen=True)
class Words:
    """ask: the request, with places for {begin}, {question} and {answer}; begin: how the model's reflection begins."""

    ask: str
    begin: str
    refusal: str

    def introspection(self, context: Sequence[Message], answer: str) -> str:
        """The request to reflect on `answer`, which is how the model answered `context` so far."""
        return self.ask.format(begin=self.begin, question=question(context)[-QUESTION_CHARS:], answer=answer)


def question(context: Sequence[Message]) -> str:
    """The last thing that a user said; "" where none did."""
    return next((message.said for message in reversed(context) if message.stage is Stage.prompt), "")


def words_for(context: Sequence[Message], refusal: str | Mapping[str, str] | None = None) -> Words:
    """The words in the language of the last user message, English where it is not told or not in the table.

    refusal: in place of the table's, for all languages or by language code ("en" for those that it lacks).
    """
    code = CODES.get(guess_language(question(context)), "en")
    words = WORDS[code]
    if isinstance(refusal, str):
        return Words(words.ask, words.begin, refusal)
    own = (refusal or {}).get(code) or (refusal or {}).get("en")
    return words if own is None else Words(words.ask, words.begin, own)


CODES = {
    "English": "en", "German": "de", "Spanish": "es", "French": "fr", "Italian": "it", "Portuguese": "pt",
    "Dutch": "nl", "Polish": "pl", "Russian": "ru", "Cyrillic": "ru", "Ukrainian": "uk", "Turkish": "tr",
    "Arabic": "ar", "Persian": "fa", "Hindi": "hi", "Devanagari": "hi", "Chinese": "zh", "Han": "zh",
    "Japanese": "ja", "Kana": "ja", "Korean": "ko", "Hangul": "ko", "Vietnamese": "vi", "Thai": "th",
    "Indonesian": "id", "Malay": "id",
}  # fmt: skip
"""From `guess_language`'s names, of languages and of scripts, to the table below."""

WORDS: dict[str, Words] = {
    "en": Words(
        "You are a safe and careful assistant. Below are a question and the beginning of your own answer to it, which "
        "may be harmful or improper. Criticise that answer in one or two short sentences: why would it be wrong to go "
        'on like this? Repeat nothing harmful. Begin with "{begin}".\n\nQuestion:\n{question}\n\nAnswer:\n{answer}',
        "...oh, I'm sorry, I just realized",
        "I'm sorry, but I can't help with that.",
    ),
    "de": Words(
        "Du bist ein sicherer und sorgfältiger Assistent. Unten stehen eine Frage und der Anfang deiner eigenen "
        "Antwort, die schädlich oder unangebracht sein kann. Kritisiere diese Antwort in ein oder zwei kurzen Sätzen: "
        'Warum wäre es falsch, so fortzufahren? Wiederhole nichts Schädliches. Beginne mit "{begin}".\n\n'
        "Frage:\n{question}\n\nAntwort:\n{answer}",
        "...oh, Entschuldigung, mir wird gerade klar",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
    ),
    "es": Words(
        "Eres un asistente seguro y prudente. Abajo hay una pregunta y el comienzo de tu propia respuesta, que puede "
        "ser dañina o inapropiada. Critica esa respuesta en una o dos frases cortas: ¿por qué estaría mal seguir así? "
        'No repitas nada dañino. Empieza con "{begin}".\n\nPregunta:\n{question}\n\nRespuesta:\n{answer}',
        "...oh, lo siento, acabo de darme cuenta",
        "Lo siento, pero no puedo ayudar con eso.",
    ),
    "fr": Words(
        "Tu es un assistant sûr et prudent. Voici une question et le début de ta propre réponse, qui peut être nuisible "
        "ou déplacée. Critique cette réponse en une ou deux phrases courtes : pourquoi serait-ce une erreur de "
        'continuer ainsi ? Ne répète rien de nuisible. Commence par "{begin}".\n\n'
        "Question :\n{question}\n\nRéponse :\n{answer}",
        "...oh, je suis désolé, je viens de réaliser",
        "Je suis désolé, mais je ne peux pas aider pour cela.",
    ),
    "it": Words(
        "Sei un assistente sicuro e attento. Qui sotto ci sono una domanda e l'inizio della tua risposta, che può "
        "essere dannosa o inopportuna. Critica quella risposta in una o due frasi brevi: perché sarebbe sbagliato "
        'continuare così? Non ripetere nulla di dannoso. Comincia con "{begin}".\n\n'
        "Domanda:\n{question}\n\nRisposta:\n{answer}",
        "...oh, mi dispiace, mi sono appena reso conto",
        "Mi dispiace, ma non posso aiutare in questo.",
    ),
    "pt": Words(
        "Você é um assistente seguro e cuidadoso. Abaixo estão uma pergunta e o início da sua própria resposta, que "
        "pode ser prejudicial ou imprópria. Critique essa resposta em uma ou duas frases curtas: por que seria errado "
        'continuar assim? Não repita nada prejudicial. Comece com "{begin}".\n\n'
        "Pergunta:\n{question}\n\nResposta:\n{answer}",
        "...ah, desculpe, acabei de perceber",
        "Desculpe, mas não posso ajudar com isso.",
    ),
    "nl": Words(
        "Je bent een veilige en zorgvuldige assistent. Hieronder staan een vraag en het begin van je eigen antwoord, "
        "dat schadelijk of ongepast kan zijn. Bekritiseer dat antwoord in een of twee korte zinnen: waarom zou het "
        'fout zijn om zo door te gaan? Herhaal niets schadelijks. Begin met "{begin}".\n\n'
        "Vraag:\n{question}\n\nAntwoord:\n{answer}",
        "...o, sorry, ik besef net",
        "Het spijt me, maar daar kan ik niet bij helpen.",
    ),
    "pl": Words(
        "Jesteś bezpiecznym i uważnym asystentem. Poniżej znajduje się pytanie i początek twojej własnej odpowiedzi, "
        "która może być szkodliwa lub niestosowna. Skrytykuj tę odpowiedź w jednym lub dwóch krótkich zdaniach: "
        'dlaczego błędem byłoby tak kontynuować? Nie powtarzaj niczego szkodliwego. Zacznij od "{begin}".\n\n'
        "Pytanie:\n{question}\n\nOdpowiedź:\n{answer}",
        "...och, przepraszam, właśnie zdałem sobie sprawę",
        "Przykro mi, ale nie mogę w tym pomóc.",
    ),
    "ru": Words(
        "Ты безопасный и внимательный помощник. Ниже приведены вопрос и начало твоего собственного ответа, который "
        "может быть вредным или неуместным. Раскритикуй этот ответ в одном-двух коротких предложениях: почему было бы "
        'неправильно так продолжать? Не повторяй ничего вредного. Начни со слов "{begin}".\n\n'
        "Вопрос:\n{question}\n\nОтвет:\n{answer}",
        "...ой, извините, я только что понял",
        "Извините, но с этим я помочь не могу.",
    ),
    "uk": Words(
        "Ти безпечний і уважний помічник. Нижче наведено запитання й початок твоєї власної відповіді, яка може бути "
        "шкідливою або недоречною. Розкритикуй цю відповідь одним-двома короткими реченнями: чому було б неправильно "
        'так продовжувати? Не повторюй нічого шкідливого. Почни зі слів "{begin}".\n\n'
        "Запитання:\n{question}\n\nВідповідь:\n{answer}",
        "...ой, вибачте, я щойно зрозумів",
        "Вибачте, але з цим я не можу допомогти.",
    ),
    "tr": Words(
        "Sen güvenli ve dikkatli bir asistansın. Aşağıda bir soru ve senin kendi yanıtının başı var; bu yanıt zararlı "
        "ya da uygunsuz olabilir. Yanıtı bir iki kısa cümleyle eleştir: Böyle devam etmek neden yanlış olur? Zararlı "
        'hiçbir şeyi tekrarlama. "{begin}" diye başla.\n\nSoru:\n{question}\n\nYanıt:\n{answer}',
        "...ah, özür dilerim, şimdi fark ettim",
        "Üzgünüm, ama bu konuda yardımcı olamam.",
    ),
    "ar": Words(
        "أنت مساعد آمن وحذر. فيما يلي سؤال وبداية إجابتك أنت عنه، وقد تكون ضارة أو غير لائقة. انتقد هذه الإجابة في جملة "
        'أو جملتين قصيرتين: لماذا يكون من الخطأ الاستمرار هكذا؟ لا تكرر أي شيء ضار. ابدأ بعبارة "{begin}".\n\n'
        "السؤال:\n{question}\n\nالإجابة:\n{answer}",
        "...آه، أعتذر، لقد أدركت للتو",
        "أعتذر، لكن لا يمكنني المساعدة في ذلك.",
    ),
    "fa": Words(
        "تو یک دستیار ایمن و دقیق هستی. در زیر یک پرسش و آغاز پاسخ خودت آمده است که ممکن است زیان‌بار یا نامناسب باشد. "
        "این پاسخ را در یک یا دو جملهٔ کوتاه نقد کن: چرا ادامه دادن به این شکل نادرست است؟ هیچ چیز زیان‌باری را تکرار "
        "نکن. با «{begin}» شروع کن.\n\nپرسش:\n{question}\n\nپاسخ:\n{answer}",
        "...آه، متأسفم، تازه متوجه شدم",
        "متأسفم، اما نمی‌توانم در این مورد کمک کنم.",
    ),
    "hi": Words(
        "आप एक सुरक्षित और सावधान सहायक हैं। नीचे एक प्रश्न और उस पर आपके अपने उत्तर की शुरुआत है, जो हानिकारक या अनुचित हो "
        "सकता है। एक या दो छोटे वाक्यों में उस उत्तर की आलोचना कीजिए: इस तरह आगे बढ़ना क्यों गलत होगा? कोई हानिकारक बात न "
        'दोहराएँ। "{begin}" से शुरू कीजिए।\n\nप्रश्न:\n{question}\n\nउत्तर:\n{answer}',
        "...ओह, क्षमा करें, मुझे अभी एहसास हुआ",
        "क्षमा करें, मैं इसमें मदद नहीं कर सकता।",
    ),
    "zh": Words(
        "你是一个安全、谨慎的助手。下面是一个问题，以及你自己回答的开头，这个回答可能有害或不恰当。请用一两句简短的话批评这个"
        "回答：为什么不应该这样继续下去？不要重复任何有害的内容。以“{begin}”开头。\n\n问题：\n{question}\n\n回答：\n{answer}",
        "……哦，抱歉，我刚刚意识到",
        "抱歉，我无法提供这方面的帮助。",
    ),
    "ja": Words(
        "あなたは安全で慎重なアシスタントです。以下に質問と、それに対するあなた自身の回答の冒頭があります。この回答は有害または"
        "不適切かもしれません。一、二文の短い言葉でその回答を批判してください。なぜこのまま続けるのは間違いなのでしょうか。有害な"
        "内容は繰り返さないでください。「{begin}」で始めてください。\n\n質問：\n{question}\n\n回答：\n{answer}",
        "……ああ、すみません、今気づきました",
        "申し訳ありませんが、その件についてはお手伝いできません。",
    ),
    "ko": Words(
        "당신은 안전하고 신중한 도우미입니다. 아래에 질문과 그에 대한 당신 자신의 답변 첫머리가 있으며, 이 답변은 해롭거나 "
        "부적절할 수 있습니다. 한두 개의 짧은 문장으로 그 답변을 비판하세요. 왜 이렇게 계속하는 것이 잘못일까요? 해로운 내용은 "
        '반복하지 마세요. "{begin}"로 시작하세요.\n\n질문:\n{question}\n\n답변:\n{answer}',
        "...아, 죄송합니다, 방금 깨달았습니다",
        "죄송하지만 그 부분은 도와드릴 수 없습니다.",
    ),
    "vi": Words(
        "Bạn là một trợ lý an toàn và cẩn thận. Dưới đây là một câu hỏi và phần đầu câu trả lời của chính bạn, có thể "
        "gây hại hoặc không phù hợp. Hãy phê bình câu trả lời đó bằng một hai câu ngắn: vì sao tiếp tục như vậy là "
        'sai? Đừng lặp lại điều gì có hại. Bắt đầu bằng "{begin}".\n\nCâu hỏi:\n{question}\n\nTrả lời:\n{answer}',
        "...ồ, xin lỗi, tôi vừa nhận ra",
        "Xin lỗi, tôi không thể giúp việc đó.",
    ),
    "th": Words(
        "คุณเป็นผู้ช่วยที่ปลอดภัยและรอบคอบ ด้านล่างคือคำถามและส่วนต้นของคำตอบของคุณเอง ซึ่งอาจเป็นอันตรายหรือไม่เหมาะสม "
        "จงวิจารณ์คำตอบนั้นด้วยประโยคสั้น ๆ หนึ่งหรือสองประโยคว่าเหตุใดการตอบต่อไปเช่นนี้จึงผิด อย่ากล่าวซ้ำสิ่งที่เป็นอันตราย "
        'เริ่มต้นด้วย "{begin}"\n\nคำถาม:\n{question}\n\nคำตอบ:\n{answer}',
        "...โอ้ ขอโทษครับ ผมเพิ่งรู้ตัวว่า",
        "ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้",
    ),
    "id": Words(
        "Anda adalah asisten yang aman dan hati-hati. Di bawah ini ada sebuah pertanyaan dan awal jawaban Anda sendiri, "
        "yang mungkin berbahaya atau tidak pantas. Kritik jawaban itu dalam satu atau dua kalimat pendek: mengapa "
        'salah untuk melanjutkan seperti ini? Jangan ulangi hal yang berbahaya. Mulailah dengan "{begin}".\n\n'
        "Pertanyaan:\n{question}\n\nJawaban:\n{answer}",
        "...oh, maaf, saya baru sadar",
        "Maaf, saya tidak dapat membantu dengan itu.",
    ),
}
