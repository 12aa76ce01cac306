"""One reader for every door: what a record, a message, a block, a tool call and a tool result are.

| to read | call |
|---|---|
| any value: metadata, artifacts, states, commands | `values.texts_of`, and `values.replaced` to put texts back |
| one message of any chat API | `guardkit.Message.of` (`message.read_message`) |
| one record of any log, data set or API body | `records.read_record` |
| the JSON text of a record | `jsontext.parse` |
| a stream of JSON values, or an array of them | `json_values.JsonValues` |
| a file's bytes, compressed or in any Unicode encoding, as UTF-8 | `encodings.text_chunks` |

Three rules hold everywhere. What has no known meaning is walked, and every string in it is judged at the stage of its
surroundings. What cannot be judged (media, bytes) is listed. A position that is known to hold no text (an id) is passed
over only where its value looks like one.
"""
