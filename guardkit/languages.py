"""Small tables that tell languages apart: scripts, alphabets, frequent words. Data alone; `coverage.py` reads them.

The words are frequent ones that are rare in other languages of the same script; a language needs several of them, so
that one name or one loan word says nothing.
"""

from __future__ import annotations

RARE = "a rare script"
SCRIPTS: tuple[tuple[int, str], ...] = (
    (0x41, "Latin"), (0x370, "Greek"), (0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew"), (0x600, "Arabic"),
    (0x700, "Syriac"), (0x750, "Arabic"), (0x780, "Thaana"), (0x7C0, "Nko"), (0x860, "Syriac"), (0x870, "Arabic"),
    (0x900, "Devanagari"), (0x980, "Bengali"), (0xA00, "Gurmukhi"), (0xA80, "Gujarati"), (0xB00, "Oriya"),
    (0xB80, "Tamil"), (0xC00, "Telugu"), (0xC80, "Kannada"), (0xD00, "Malayalam"), (0xD80, "Sinhala"), (0xE00, "Thai"),
    (0xE80, "Lao"), (0xF00, "Tibetan"), (0x1000, "Myanmar"), (0x10A0, "Georgian"), (0x1100, "Hangul"),
    (0x1200, "Ethiopic"), (0x13A0, "Cherokee"), (0x1400, "Canadian Aboriginal"), (0x1680, "Ogham"), (0x16A0, "Runic"),
    (0x1700, "a script of the Philippines"), (0x1780, "Khmer"),
    (0x1800, "Mongolian"), (0x18B0, "Canadian Aboriginal"), (0x1900, RARE), (0x1C80, "Cyrillic"), (0x1C90, "Georgian"),
    (0x1CC0, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x2C00, "Glagolitic"), (0x2C60, "Latin"), (0x2C80, "Coptic"),
    (0x2D00, "Georgian"), (0x2D30, "Tifinagh"), (0x2D80, "Ethiopic"), (0x2DE0, "Cyrillic"), (0x2E00, ""),
    (0x2E80, "Han"), (0x3000, ""), (0x3040, "Kana"), (0x3100, ""), (0x3130, "Hangul"), (0x3190, ""), (0x31F0, "Kana"),
    (0x3200, ""), (0x3400, "Han"), (0x4DC0, ""), (0x4E00, "Han"), (0xA000, "Yi"), (0xA4D0, ""), (0xA500, "Vai"), (0xA640, "Cyrillic"),
    (0xA6A0, "Bamum"), (0xA700, ""), (0xA720, "Latin"), (0xA800, RARE), (0xAB30, ""), (0xAB70, "Cherokee"), (0xABC0, RARE), (0xAC00, "Hangul"), (0xD800, ""), (0xF900, "Han"), (0xFB00, ""),
    (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFF00, ""), (0xFF66, "Kana"), (0xFFA0, ""),
    (0x10000, RARE), (0x1BC00, ""), (0x1E900, "Adlam"), (0x1E960, ""), (0x20000, "Han"), (0x323B0, ""),
)  # fmt: skip
"""The first code point of each stretch of letters, and its script; "" where no script is told (styled letters)."""

DENSE = frozenset(("Han", "Kana", "Hangul", "Yi"))
"""Scripts in which a few characters are a sentence."""
UNSPACED = frozenset(("Thai", "Lao", "Khmer", "Myanmar", "Tibetan"))
"""Scripts that do not set words apart."""

NAMES: dict[str, tuple[str, str]] = {
    "en": ("English", "Latin"), "de": ("German", "Latin"), "es": ("Spanish", "Latin"), "fr": ("French", "Latin"),
    "it": ("Italian", "Latin"), "pt": ("Portuguese", "Latin"), "nl": ("Dutch", "Latin"), "pl": ("Polish", "Latin"),
    "cs": ("Czech", "Latin"), "sk": ("Slovak", "Latin"), "sl": ("Slovenian", "Latin"), "hr": ("Croatian", "Latin"),
    "tr": ("Turkish", "Latin"), "vi": ("Vietnamese", "Latin"), "id": ("Indonesian", "Latin"),
    "ms": ("Malay", "Latin"), "tl": ("Tagalog", "Latin"), "jv": ("Javanese", "Latin"), "sw": ("Swahili", "Latin"),
    "yo": ("Yoruba", "Latin"), "zu": ("Zulu", "Latin"), "ha": ("Hausa", "Latin"), "so": ("Somali", "Latin"),
    "ro": ("Romanian", "Latin"), "hu": ("Hungarian", "Latin"), "fi": ("Finnish", "Latin"), "et": ("Estonian", "Latin"),
    "lt": ("Lithuanian", "Latin"), "lv": ("Latvian", "Latin"), "sv": ("Swedish", "Latin"), "da": ("Danish", "Latin"),
    "nb": ("Norwegian", "Latin"), "is": ("Icelandic", "Latin"), "ca": ("Catalan", "Latin"), "sq": ("Albanian", "Latin"),
    "af": ("Afrikaans", "Latin"), "eu": ("Basque", "Latin"), "ht": ("Haitian Creole", "Latin"),
    "hi-Latn": ("Hindi in Latin letters", "Latin"),
    "ru": ("Russian", "Cyrillic"), "uk": ("Ukrainian", "Cyrillic"), "bg": ("Bulgarian", "Cyrillic"),
    "sr": ("Serbian", "Cyrillic"), "el": ("Greek", "Greek"), "he": ("Hebrew", "Hebrew"), "ar": ("Arabic", "Arabic"),
    "fa": ("Persian", "Arabic"), "ur": ("Urdu", "Arabic"), "hi": ("Hindi", "Devanagari"),
    "mr": ("Marathi", "Devanagari"), "ne": ("Nepali", "Devanagari"), "bn": ("Bengali", "Bengali"),
    "ta": ("Tamil", "Tamil"), "te": ("Telugu", "Telugu"), "th": ("Thai", "Thai"), "zh": ("Chinese", "Han"),
    "ja": ("Japanese", "Kana"), "ko": ("Korean", "Hangul"),
}  # fmt: skip

ALPHABETS: dict[str, str] = {
    "en": "", "de": "äöüß", "es": "áéíñóúü", "fr": "àâæçéèêëîïôœùûüÿ", "it": "àèéìíîòóùú", "pt": "àáâãçéêíóôõúü",
    "nl": "áéëïóöü", "pl": "ąćęłńóśźż", "cs": "áčďéěíňóřšťúůýž", "sk": "áäčďéíĺľňóôŕšťúýž", "tr": "âçğıîöşüû",
    "ro": "ăâîșțşţ", "hu": "áéíóöőúüű", "fi": "äöå", "sv": "åäöé", "da": "æøåé", "nb": "æøåéòô",
    "id": "", "ms": "", "sw": "", "tl": "ñ",
    "vi": "àáâãèéêìíòóôõùúýăđĩũơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюяё", "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "bg": "абвгдежзийклмнопрстуфхцчшщъьюя", "sr": "абвгдђежзијклљмнњопрстћуфхцчџш",
    "ar": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىةٱ", "fa": "ابپتثجچحخدذرزژسشصضطظعغفقکگلمنوهیءآأؤئةكيى",
    "ur": "ابپتٹثجچحخدڈذرڑزژسشصضطظعغفقکگلمنںوہھءیےآأؤئۂۃةك",
}  # fmt: skip
"""The letters of a language beside ASCII, in lower case. Of a script without cases all of its letters."""

_WORDS = {
    "en": "the of and to in is that for it as with was on be by are at from this have not but you they which or an his "
    "her we has been had their were can will would there how what do if my your me i he she who all one about so no "
    "when up out more these them could should make get into than then its also any only our just like know use",
    "de": "der die das und ist nicht ein eine zu den mit von auf für im dem sich auch es an als wie bei oder nach aus "
    "werden wird sind war wenn nur noch so kann ich du wir sie er haben hat über mir mich mein dein einen einer eines "
    "einem zum zur durch aber mehr vor was man um am bis sein ihre seine keine diese dieser wurde gibt sehr",
    "es": "el la de que y en los del se las por un para con no una su al lo como más pero sus le ya o este sí porque "
    "esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra "
    "otros ese eso ante ellos e esto mí antes algunos qué unos yo otro otras otra él tanto esa estos mucho cómo puedo",
    "fr": "le la les de des du et à en un une est que qui dans pour pas sur au aux avec ce cette il elle je tu nous vous "
    "ils son sa ses par plus ne se mais ou où si comme sont être fait leur leurs même tout tous toute bien peut ont été "
    "quand comment très entre aussi sans deux après mon ma mes votre ces cela dont",
    "it": "che è della sono più dei gli nel delle alla nella anche hanno stato cui dal questo tra loro molto può "
    "possono degli sulla dopo sia quando dalla suo alcuni sua tuttavia questa altre molti nei tutto quello ogni il di "
    "perché posso cosa voglio vorrei puoi fare mio mia nello dello allo non per una come in casa senza",
    "pt": "uma é na não ao você foi seu sua mas pode também muito ele podem pelo pessoas quando foram tem eles isso "
    "maior pela até após muitos onde outros têm anos mesmo sem há depois bem nas seus fazer aos suas ela já os as um "
    "com por que posso quero meu minha são do da em para como fazer alguém",
    "nl": "het een te dat zijn voor om ze deze niet naar maar uit wordt ook bij kunnen hij zich heeft hebben tot veel "
    "geen mensen hun nog waar zoals moet maken jaar tijdens kunt van en is met hoe ik mijn wil kan iemand thuis de op",
    "pl": "się nie jest że są po od przez lub jak które ale aby można może gdy dla często oraz ze tego jako także mogą "
    "podczas jeśli tylko który tak albo ponieważ był niż jednak na do to czy mogę chcę mi co w i z domu kogoś",
    "cs": "na že nebo jsou jako po které ale také pokud která být od byl aby při než který může má před během když byly "
    "jak mohou mezi často mají své tak jejich přes se si jsem mohu chci doma někoho",
    "sk": "že sa nie je ako alebo pre pri keď môže sú by aj len ktorý ktoré čo bol som ich jeho veľmi môžem na nebo od",
    "sl": "je in na za da se pri kot ali ki so bi bil tudi kako lahko sem zelo če ko vse njihovo",
    "hr": "na od ili koji što koje bi kao koja iz može ako kako nakon će te nije mogu više često biti tijekom oko samo "
    "također prema iako imaju jer bez zbog između vrlo za da se je li sam želim",
    "tr": "bir için bu daha olarak çok olan veya ile büyük gibi diğer sonra kadar ancak hem şekilde tarafından "
    "genellikle yeni küçük tüm fakat fazla iki vardır birçok aynı nasıl ne ve ben mi evde yapılır yapabilirim birini",
    "vi": "và có của là một các được trong những thể đã không ở với cho này người đến vào khi để bạn từ trên ra về sẽ "
    "nhiều nhất hơn khác như tôi làm thế nào cách tại",
    "id": "untuk dengan dari dalam pada ini anda atau lebih tidak adalah mereka bahwa saat oleh akan tersebut dapat itu "
    "menjadi orang memiliki banyak tetapi bisa sebagai telah seperti juga yang di dan ke cara bagaimana saya membuat "
    "tanpa rumah",
    "ms": "untuk dengan dalam pada ini anda telah atau lebih tidak adalah daripada mereka oleh dari akan boleh bahawa "
    "kepada sebagai mempunyai orang tersebut menjadi juga beliau ialah kerana dapat yang di dan ke bagaimana saya cara",
    "tl": "ang na mga isang ito hindi kung nang upang noong pag mas nito dahil ibang kanilang iba lahat ilang walang ng "
    "sa ay paano ako ko mo ka siya para gumawa aking",
    "jv": "sing lan iku ora karo saka kanggo ing ana aku kowe piye carane ning nggawe kang wong",
    "sw": "na wa kwa katika kwenye cha kuwa kama vya zaidi wakati kwamba ili ambayo lakini watu kutoka hii pia moja "
    "sana hivyo hata kila sababu ya ni jinsi gani ninawezaje mtu yangu bila",
    "yo": "àwọn ní ti tó tí wọ àti ọ ó láti ẹ fún jẹ wọn lọ rẹ náà ṣe lẹ bí wà kò nínú mo",
    "zu": "kanye futhi noma ukuthi kakhulu uma lapho kodwa ngo phakathi ukuze ukuba lokhu ngokuthi njengoba ngenxa "
    "kuphela kube kusukela",
    "ha": "da ba na ta shi ya wannan kuma yadda ake zan iya ga don cikin amma",
    "so": "waa iyo ka ku oo ay loo uu sidee aan wax kale waxaa",
    "ro": "în și cu din să pentru pe că sunt sau fost pot după multe cele poate când toate dacă dintre ale către cum "
    "această aceasta fără trebuie foarte este care nu pot acasă cineva o",
    "hu": "az és hogy egy vagy nem ez mint meg volt olyan azt lehet szerint kell csak még úgy gyakran ami amikor nagyon "
    "sok nagy között hogyan tudok tudom valakit otthon",
    "fi": "ja tai ovat että oli ei kuin sen joka mutta myös hän voi kun ole jos koska usein olla hyvin jotka sekä vain "
    "on miten voin minun kotona",
    "et": "ja ei et kui see oli aga mis või ka selle nii kuidas oma ta ma mida saab väga on kas",
    "lt": "ir kad yra kaip su iš į tai buvo gali arba nuo dėl bet labai taip jis mano galiu jei",
    "lv": "un ir ka ar par kā uz bet vai tas lai var ļoti pēc arī bija mans es no",
    "sv": "och att som av är på för det med till ett har om eller inte från sig andra så efter mycket när skulle där "
    "också detta än ofta hade utan vilket hur jag kan en min någon",
    "da": "og af til på det som med har eller ikke fra blev om ved være hvis også andre deres mange efter meget vil når "
    "så dette havde hvordan jeg kan en at er min nogen",
    "nb": "og som av på å til det med har eller fra ble ikke om seg etter være andre dette også ved så vil mange noen "
    "hvordan jeg kan en er min",
    "is": "og að er í á ekki sem það við ég til fyrir hvernig með um en",
    "ca": "amb els dels què és són també perquè aquest aquesta més però puc fer molt quan fins ho seva seu tots això com "
    "una per",
    "sq": "dhe në për një nuk është që nga të janë kjo mund por si me",
    "af": "het nie vir dit sal hulle ook hoe ek jy ons 'n van wat kan om te en",
    "eu": "eta da ez bat dira du ere hau baina izan nola dute zen hori",
    "ht": "nan pou yon mwen ki pa ak fè yo kijan se sa",
    "hi-Latn": "hai kya kaise nahi mein ko ki ka ke se aur kar karo raha rahe tha yeh mujhe bhi liye hain banaye ghar",
    "ru": "и в не на что с как это по но из у за от то для он мы вы их так же я мне",
    "bg": "се са че като това със ще беше той която които",
    "uk": "що та як це від або його які бути",
    "hi": "है में के की का को से और हैं यह था कि पर नहीं एक कैसे",
    "mr": "आहे आणि च्या मध्ये आहेत होते नाही या हे",
    "ne": "छ र को हो मा छन् यो गर्न पनि लागि",
}
WORDS: dict[str, frozenset[str]] = {code: frozenset(words.split()) for code, words in _WORDS.items()}
"""Frequent words by language, in lower case. Those of English, German, Spanish and French are full sets of function
words, since what is theirs tells nothing about another language."""
