// Every word of the page, in English and Chinese.
export const WORDS = {
  en: {
    lang: "中文", skip: "Skip to the button", theme: "Light or dark", key_label: "Key",
    ask: "What should it sound like?", description: "Describe the song in your own words",
    description_example: "Pop ballad, piano and strings, female voice, warm, BPM 84",
    lyrics: "Lyrics (none: an instrumental)", lyrics_example: "[verse]\n月亮升起来\n照着旧窗台",
    readings: "How it will be read", readings_hint: "Characters with a dotted line have several readings: choose one with a click or Enter.",
    understood: "What was understood (click to change)",
    seconds: "Seconds", seconds_auto: "as the lyrics need", user_type: "Who describes it", user_none: "not said",
    user_amateur: "a music lover", user_professional: "a musician", seed: "Seed", seed_auto: "drawn", steps: "Steps",
    reference: "Follow a recording", reference_file: "Audio file", reference_kind: "It holds", kind_mix: "a whole mix",
    kind_vocals: "vocals", kind_drums: "drums", kind_chords: "chords", kind_bass: "bass",
    make: "Make the song", stop: "Stop", shortcut: "Ctrl + Enter", player: "Your song", seek: "Position",
    download: "Download WAV", sidecar: "How it was made (JSON)", again: "Use these settings again",
    history: "Songs so far", no_history: "Nothing yet.", close: "Close", choose: "Reading of",
    queued: "in the queue, about {0} s", position: "{0} before it, about {1} s", reading: "reading the words",
    waiting: "waiting for its turn", denoising: "step {0} of {1}, about {2} s left", decoding: "turning into sound: {0} s can be heard",
    completed: "finished", failed: "failed", cancelled: "stopped", in_progress: "under way",
    tempo: "tempo", key: "key", chords: "chords", tag: "tag", length: "length",
    budget: "{0} syllables, {1} a second; comfortable are {2} s", budget_over: "{0} syllables do not fit: {2} s would be comfortable",
    play: "Play", remove: "Delete", unreachable: "The service cannot be reached. Is it still running?",
    wants_key: "This service asks for a key.", ideas: "Ideas", sections: "Section tags", wrong_key: "That key is not known here.",
    edit: "New value for {0} (empty: as described)",
    repaint: "Change a part of it", repaint_hint: "Draw over the picture, or give seconds. All other sound stays as it is.",
    repaint_from: "From second", repaint_to: "To second", repaint_description: "Its description",
    repaint_lyrics: "The lyrics of the whole song; what changes within the span is sung anew",
    repaint_make: "Make this part anew", repaint_span: "Choose a part that lies within the song first.",
  },
  zh: {
    lang: "English", skip: "跳到按钮", theme: "浅色或深色", key_label: "密钥",
    ask: "想要什么样的歌？", description: "用自己的话描述这首歌",
    description_example: "流行抒情，钢琴与弦乐，女声，温暖，BPM 84",
    lyrics: "歌词（留空为纯音乐）", lyrics_example: "[verse]\n月亮升起来\n照着旧窗台",
    readings: "读音", readings_hint: "带虚线的字是多音字：点击或按回车选择读音。",
    understood: "听懂了什么（点击修改）",
    seconds: "秒数", seconds_auto: "按歌词长度", user_type: "描述者", user_none: "不说明",
    user_amateur: "音乐爱好者", user_professional: "专业音乐人", seed: "种子", seed_auto: "随机", steps: "步数",
    reference: "参考音频", reference_file: "音频文件", reference_kind: "内容", kind_mix: "完整混音",
    kind_vocals: "人声", kind_drums: "鼓", kind_chords: "和弦", kind_bass: "贝斯",
    make: "生成歌曲", stop: "停止", shortcut: "Ctrl + 回车", player: "你的歌", seek: "播放位置",
    download: "下载 WAV", sidecar: "生成记录（JSON）", again: "再用这些设置",
    history: "已有的歌", no_history: "还没有。", close: "关闭", choose: "选择读音：",
    queued: "排队中，约 {0} 秒", position: "前面有 {0} 首，约 {1} 秒", reading: "正在读词",
    waiting: "等待中", denoising: "第 {0} 步，共 {1} 步，约剩 {2} 秒", decoding: "正在变成声音：可以先听 {0} 秒",
    completed: "完成", failed: "失败", cancelled: "已停止", in_progress: "进行中",
    tempo: "速度", key: "调", chords: "和弦", tag: "标签", length: "长度",
    budget: "{0} 个音节，每秒 {1} 个；{2} 秒较为从容", budget_over: "{0} 个音节放不下：{2} 秒较为从容",
    play: "播放", remove: "删除", unreachable: "无法连接服务，它还在运行吗？",
    wants_key: "此服务需要密钥。", ideas: "灵感", sections: "段落标签", wrong_key: "密钥无效。",
    edit: "{0} 的新值（留空：按描述）",
    repaint: "修改其中一段", repaint_hint: "在图上拖动选择，或填写秒数。其余部分保持不变。",
    repaint_from: "从第几秒", repaint_to: "到第几秒", repaint_description: "描述",
    repaint_lyrics: "整首歌的歌词；选中段落内的改动会重新演唱",
    repaint_make: "重新生成这一段", repaint_span: "请先在歌曲范围内选择一段。",
  },
};

export const IDEAS = {
  en: ["calm piano", "rock band, energetic", "female voice", "slow, in C minor", "folk guitar, BPM 96"],
  zh: ["流行抒情，钢琴", "摇滚，激烈", "女声，温暖", "慢歌，C小调", "民谣吉他，BPM 96"],
};
export const TAGS = ["intro", "verse", "pre-chorus", "chorus", "bridge", "outro"];

export function say(language, name, ...values) {
  let text = WORDS[language][name] ?? name;
  values.forEach((value, at) => { text = text.replaceAll(`{${at}}`, value); });
  return text;
}
