r"""What the default of `accuracy` calls right: (solution, completion, verdict), by kind; then real
solutions, and hostile texts."""

import itertools
import json
import math
import random
import re

import pytest

from reasonjax.errors import UserError
from reasonjax.methods.rewards import accuracy
from reasonjax.tasks.answers import extract, read_solution, same_answer

TABLE = {
    'signs': [
        ('-5', 'so it is -5', 1),
        ('-5', 'so it is \u22125', 1),
        ('5', 'so it is \u22125', 0),
        ('-5', '3-5', 0),
        ('5', '3-5', 0),
        ('-2', '3-5', 0),
        ('3-5', '3-5', 1),
        ('-5', 'x = - 5', 1),
        ('5', 'It is +5.', 1),
        ('-5', r'\boxed{-5}', 1),
        ('-5', '\\boxed{\u22125}', 1),
        ('5', '\\boxed{\u20135}', 0),
        ('-5', 'The answer is \u20135.', 1),
        ('5', 'between 3\u20135', 0),
        ('5', 'from 12 - 7 = 5', 1),
        ('-3', '- 3', 1),
        ('5', 'pages 3\u20145 = 5', 1),
    ],
    'thousands': [
        ('1234', '1,234', 1),
        ('1234', 'It is 1,234.', 1),
        ('1234', r'\boxed{1{,}234}', 1),
        ('1234', r'\boxed{1\,234}', 1),
        ('1234', r'\boxed{1,\!234}', 1),
        ('1234', 'The answer is 1 234.', 1),
        ('1234', 'The answer is 1\u202f234.', 1),
        ('1234', "The answer is 1'234", 1),
        ('1234', 'The answer is 1\u2019234.', 1),
        ('1234', 'It is 1\xa0234 in all', 1),
        ('1234567', 'The answer is 1.234.567', 1),
        ('1234.56', 'The answer is 1.234,56', 1),
        ('1234.56', 'The answer is 1 234,56', 1),
        ('1234.56', '1,234.56', 1),
        ('1234', r'\boxed{1_234}', 1),
        ('1234567', '12,34,567', 1),
        ('1234', r'\boxed{1.234}', 0),
        ('1234', r'\boxed{12,34}', 0),
        ('1.5', r'\boxed{1,5}', 0),
        ('15', r'\boxed{1,5}', 0),
        ('1.5', '\u20ac1,50', 1),
        ('1.5', r'\boxed{1{,}5}', 1),
        ('1234', '1, 234', 0),
        ('11111111100', r'\boxed{11,\! 111,\! 111,\! 100}', 1),
    ],
    'several numbers': [
        ('12', r'\boxed{1,2}', 0),
        ('12', '(1,2)', 0),
        ('12', r'\boxed{1 2}', 0),
        ('1,2', r'\boxed{2, 1}', 1),
        ('1,2', 'The answer is 1 and 2.', 1),
        ('1,2', 'The answer is 1 or 2.', 1),
        ('1, 2, 3', '3, 2, and 1', 1),
        ('1,2', r'\boxed{1}', 0),
        ('2', r'\boxed{1,2}', 0),
        ('2', 'The answer is 1 or 2.', 0),
        ('1,2', r'\boxed{1,2,3}', 0),
        ('1,1', r'\boxed{1}', 0),
        ('7', 'First 3, then 4, so 7', 1),
        ('7', '3 + 4 = 7', 1),
        ('7', '7 = 3 + 4', 0),
        ('4', 'He had 3 and then 4', 1),
        ('1,-2', r'\boxed{-2,1}', 1),
        ('-2,1', 'x = 1 or x = -2', 1),
        (r'1 \pm \sqrt{19}', r'\boxed{1+\sqrt{19}, 1-\sqrt{19}}', 1),
        ('3,-3', r'\boxed{\pm 3}', 1),
        ('3', r'\boxed{\pm 3}', 0),
    ],
    'units': [
        ('18', '18 cm', 1),
        ('18', r'\boxed{18\text{ cm}}', 1),
        ('18', r'\boxed{18\,\mathrm{cm}}', 1),
        (r'18\text{ cm}', '18', 1),
        ('18 cm', '18 centimeters', 1),
        ('18 cm', '18 m', 0),
        ('18 cm', 'It is 18 m long.', 0),
        ('18', '18 apples', 1),
        ('18 apples', 'She has 18 apples left.', 1),
        ('18', 'The answer is 18 apples and 3 pears.', 0),
        (r'864 \mbox{ inches}^2', r'\boxed{864\text{ in}^2}', 1),
        (r'24\text{ cm}^2', r'\boxed{24\text{ cm}}', 0),
        ('24 square feet', '24 sq. ft.', 1),
        ('60 mph', '60 miles per hour', 1),
        ('60 km/h', '60 mph', 0),
        ('90', r'\boxed{90^\circ}', 1),
        ('90', '90\xb0', 1),
        (r'90^\circ', 'The angle is 90 degrees.', 1),
        ('3', r'\boxed{3x}', 0),
        ('3', r'\boxed{3\pi}', 0),
        ('3', r'\boxed{3i}', 0),
        ('3', r'\boxed{3\sqrt{2}}', 0),
        ('5', r'\boxed{5m}', 0),
        ('3rd', '3', 1),
        ('100 cm', '1 m', 0),
        ('5', 'He needs 5 hours, or 300 minutes.', 0),
    ],
    'percent': [
        ('50', r'\boxed{50\%}', 1),
        ('50%', '50', 1),
        ('50%', '0.5', 1),
        ('0.5', '50%', 1),
        ('0.5', 'It is 50 percent.', 1),
        ('0.5', '50', 0),
        ('50', '0.5', 0),
        ('50%', '0.5%', 0),
        ('0.5%', '0.005', 1),
        ('5', '50%', 0),
        ('45', '45% of the class', 1),
        ('12.5%', '1/8', 1),
        ('20', '20 per cent', 1),
        (r'50\%', r'\boxed{\frac{1}{2}}', 1),
        ('50%', '50 cm', 0),
    ],
    'currency': [
        ('18', '$18', 1),
        ('18', r'\boxed{\$18}', 1),
        (r'\$18', '18', 1),
        ('18', '18 dollars', 1),
        ('$18', '18 USD', 1),
        ('$18', '\u20ac18', 0),
        ('18', '18\u20ac', 1),
        ('18', 'USD 18', 1),
        ('-5', '-$5', 1),
        ('-5', '$-5', 1),
        ('18.5', 'She makes $18.50.', 1),
        ('$0.50', '50 cents', 0),
        ('18', '\xa318 a day', 1),
        ('50', '50\xa2', 1),
        (r'\$32,\!348', r'\boxed{\$32,348}', 1),
        ('18', '$18$', 1),
    ],
    'fractions': [
        ('1/2', r'\boxed{\frac{1}{2}}', 1),
        ('0.5', r'\boxed{\frac{1}{2}}', 1),
        (r'\frac{1}{2}', '1/2', 1),
        (r'\frac12', r'\boxed{\dfrac{1}{2}}', 1),
        (r'\frac12', r'\boxed{\tfrac 12}', 1),
        (r'\frac{1}{2}', r'\boxed{\frac{2}{4}}', 1),
        ('1/2', '\xbd', 1),
        ('1/3', '0.333', 0),
        ('1/3', '0.3333333333333333', 0),
        ('-1/2', r'\boxed{-\frac{1}{2}}', 1),
        ('-1/2', r'\boxed{\frac{-1}{2}}', 1),
        ('1/2', r'\boxed{\frac{2}{1}}', 0),
        ('12', r'\boxed{\frac{1}{2}}', 0),
        ('2', r'\boxed{\frac{1}{2}}', 0),
        ('1/2', '1/2 cup', 1),
        ('1/2', r'\boxed{{1 \over 2}}', 1),
        ('3/4', 'The ratio is 3:4', 0),
        ('3:4', 'The ratio is 3:4.', 1),
        ('0', '0/5', 1),
        (r'\frac{9}{19}', r'\boxed{\frac9{19}}', 1),
        ('1/0', '1/0', 1),
        ('5', r'\frac{10}{2}', 1),
    ],
    'decimals': [
        ('7', '7.', 1),
        ('7', '7.0', 1),
        ('7.0', '7', 1),
        ('.5', '0.5', 1),
        ('0.5', '.5', 1),
        ('72', '72...', 1),
        ('72', '72.00', 1),
        ('007', '7', 1),
        ('0.1234567', '0.1234568', 0),
        ('3.14', '3.14159', 0),
        ('1.2.3', '1.2', 0),
        ('12345678901234567890', '12345678901234567891', 0),
    ],
    'scientific': [
        ('5000', '5e3', 1),
        ('5000', r'\boxed{5 \times 10^3}', 1),
        ('5000', r'\boxed{5\cdot10^{3}}', 1),
        ('5000', 'about 5\xd710\xb3', 1),
        ('0.005', '5e-3', 1),
        ('0.00001', '1e-05', 1),
        ('3', '5e3', 0),
        ('5', '5e3', 0),
        ('1000', r'\boxed{10^3}', 1),
        ('103', r'\boxed{10^3}', 0),
        ('1e999999', '10e999998', 1),
        ('1e999999', '1e999998', 0),
        ('6.02e23', r'6.02 \times 10^{23}', 1),
        ('3000000', '3 million', 1),
        ('3', '3 million', 0),
        ('2500', 'The answer is 2.5 thousand', 1),
        ('6.02e23', 'It is 6.02 x 10^23 atoms.', 1),
    ],
    'boxes': [
        ('7', r'\boxed 7', 1),
        ('7', r'\boxed7', 1),
        ('7', r'\fbox{7}', 1),
        ('7', r'\boxed {7}', 1),
        ('7', r'\boxed{{7}}', 1),
        ('7', r'\framebox{7}', 1),
        ('7', r'$\boxed{ 7 }$.', 1),
        ('7', r'\[\boxed{7}\]', 1),
        ('7', r'\boxed{5}, no, \boxed{7}', 1),
        ('5', r'\boxed{5}, no, \boxed{7}', 0),
        ('7', r'\boxed{\boxed{7}}', 1),
        ('7', r'\boxed{x = 7}', 1),
        ('7', r'\boxed{\text{7}}', 1),
        ('7', r'\boxed{7.}', 1),
        ('7', r'\boxed{$7$}', 1),
        ('7', r'\boxed{\mathbf{7}}', 1),
        ('7', r'so \boxed{7}, since 3+4 = 7 and 9 > 8', 1),
        ('9', r'so \boxed{7}, and then 9', 0),
        ('7', r'\boxed{5', 0),
        ('7', r'\boxed{7} or \boxed{8', 1),
        ('7', r'\boxed{\text{The answer is } 7}', 1),
        ('1/2', r'\boxed\frac12', 1),
        ('7', r'\boxed[2pt]{7}', 1),
        ('7', r'\boxed{She has 7 apples}', 1),
        ('7', r'\boxed{}', 0),
        ('7', r'\bbox[5px,border:2px solid]{7}', 1),
        ('7', r'\\boxed{7}', 1),
    ],
    'sentences and words': [
        ('42', 'The answer is 42.', 1),
        ('42', 'The answer is: 42', 1),
        ('42', 'the final answer is $42$.', 1),
        ('42', '**Answer:** 42', 1),
        ('42', '**Final Answer**\n\n42', 1),
        ('42', 'Answer: 42 apples', 1),
        ('42', 'The answer is 42, which is 6 times 7.', 1),
        ('7', 'The answer is 42, which is 6 times 7.', 0),
        ('42', 'The answer is 42 because 6*7=42', 1),
        ('42', 'The answer is that she has 42 apples.', 1),
        ('42', '#### 42', 1),
        ('42', 'text\n#### 42\n', 1),
        ('42', '#### $42', 1),
        ('42', '#### Step 1: 6*7\nSo 42.', 1),
        ('1', '#### Step 1: 6*7\nSo 42.', 0),
        ('42', 'The total is **42** apples, in 6 bags of 7.', 1),
        ('7', 'The total is **42** apples, in 6 bags of 7.', 0),
        ('42', '**Step 1.** 6 * 7 = 42', 1),
        ('42', 'The answer is not 41. It is 42.', 1),
        ('42', 'The answer is 41. Wait, the answer is 42.', 1),
        ('41', 'The answer is 41. Wait, the answer is 42.', 0),
        ('42', r'<think>5? The answer is 5. \boxed{5}</think>The answer is 42.', 1),
        ('5', r'<think>\boxed{5}</think>It is 42', 0),
        ('42', 'So she has 42', 1),
        ('42', 'So she has 42!', 1),
        ('42', '"42"', 1),
        ('42', '42</s>', 1),
        ('42', 'I emitted 42 kg of CO2.', 1),
        ('42', 'no number', 0),
        ('42', '', 0),
        ('42', 'She made 6*7=42', 1),
        ('42', 'x=42.', 1),
        ('42', 'It is (42).', 1),
        ('42', 'It is 42,', 1),
        ('Paris', 'The answer is Paris.', 1),
        ('Paris', 'Paris', 1),
        ('Paris', 'The answer is London.', 0),
        ('Paris', r'\boxed{\text{paris}}', 1),
        ('B', r'\boxed{B}', 1),
        ('(B)', r'\boxed{\text{B}}', 1),
        ('B', 'The answer is (B).', 1),
        ('B', 'The answer is (C).', 0),
        ('True', 'The answer is true.', 1),
        ('True', 'False', 0),
        ('42', 'The answer is forty-two.', 0),
    ],
    'formulas': [
        ('284', r'we find $$(1+2+2^2)(1+5)(1+11)-220=7\cdot 6\cdot 12-220=284.$$', 1),
        ('720', r'The answer is $3! \times 5! = 720$.', 1),
        ('-50', r'$(1-2)+ \dots +(99-100) = 50(-1) = -50.$', 1),
        ('6+9i', r'obtain $(1+2i)6-3i=6+12i-3i=6+9i$.', 1),
        ('225', r'then, is $\binom{5}{4}\cdot \binom{10}{8} = 225$.', 1),
        ('x^2+y^2=1', 'Thus, $x^2 + y^2 = 1$.', 1),
        ('1', 'Thus, $x^2 + y^2 = 1$.', 0),
        ('12', '\\begin{align*}\n2.4/0.2 &= 24/2 \\\\\n&= 12.\n\\end{align*}', 1),
        ('6-5i', '\\begin{align*}\n&= (4 - 2i) + 2 - 3i \\\\\n&= 6 - 5i.\n\\end{align*}', 1),
        ('x \\ne 3', '3', 0),
        ('18000', 'the annual payment: $1500/month * 12 months/year = $18,000/year', 1),
        ('2', '$12/day / 6 hours/day = $2/hour', 1),
        ('20', 'to express the answer as a percentage: 90 minutes / 450 minutes * 100% = 20%', 1),
        ('70', 'Her score is 70/quiz.', 1),
        ('(1,2)', r'\boxed{(x, y) = (1, 2)}', 1),
        ('(1,2)', r'\boxed{(x, y) = (2, 1)}', 0),
        ('2', r'\boxed{2 = x}', 1),
        ('x=2', '2 = y', 0),
        ('1/2', r'\boxed{P(A) = \frac{1}{2}}', 1),
        ('30', r'\angle ABC = 30^\circ', 1),
        ('42', '\u7b54\u6848\u662f42\u3002', 1),
        ('7', '3\u52a04\u7b49\u4e8e7', 1),
        ('3', '3\u52a04\u7b49\u4e8e7', 0),
        ('5', r'\boxed{f(2) = 5}', 1),
        ('12', '3x = 12', 0),
        ('x < 2 or x > 3', r'\boxed{x > 3 \text{ or } x < 2}', 1),
        ('3,5', 'x = 3 or x = 5', 1),
        ('3,5', 'x = 3 or x = 6', 0),
        ('x+1', r'\boxed{x + 1}', 1),
        ('x+1', 'x+1', 1),
        ('1', 'x+1', 0),
        ('x=18', '18', 1),
        ('18', 'x = 18', 1),
        ('x=18', 'y=18', 0),
        ('y = 2x + 3', r'\boxed{y=2x+3}', 1),
        ('x^2', r'\boxed{x^{2}}', 1),
        (r'\sqrt{2}', r'\boxed{\sqrt2}', 1),
        (r'\sqrt{2}', '\u221a2', 1),
        ('2', r'\boxed{\sqrt{2}}', 0),
        (r'11\sqrt2', r'11 \sqrt{2}', 1),
        (r'\frac{\sqrt{3}}{3}', r'\boxed{\sqrt{3}/3}', 1),
        ('2516_8', r'\boxed{2516_{8}}', 1),
        ('2516', r'\boxed{2516_8}', 0),
        ('x', 'X', 0),
        ('6 - 5i', r'\boxed{6-5i}', 1),
        ('10:30', 'It starts at 10:30.', 1),
        ('30', 'It starts at 10:30.', 0),
        ('2x', r'\boxed{2 \cdot x}', 1),
        (r'\pi', 'pi', 1),
        ('18', '18?', 1),
        ('5', 'Step 5: we get x = 3', 0),
        ('3', 'Step 5: we get x = 3', 1),
        ('72', 'There are 48+24 = 72 clips altogether in April and May', 1),
        ('10', '0.2 x 50 = $10', 1),
        (
            '10',
            'Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.',
            1,
        ),
    ],
    'sets, tuples, intervals': [
        (r'\{1,2\}', r'\boxed{\{2, 1\}}', 1),
        (r'\{1,2\}', r'\boxed{(1,2)}', 0),
        ('(1,2)', r'\boxed{(2,1)}', 0),
        ('(1,2)', r'\boxed{\left(1, 2\right)}', 1),
        ('(1,2)', r'\boxed{[1,2]}', 0),
        ('[1,2)', r'\boxed{[1, 2)}', 1),
        ('[1,2)', r'\boxed{(1,2]}', 0),
        (r'(-\infty, 3]', '\\boxed{(-\u221e, 3]}', 1),
        (r'(-\infty, 2) \cup (3, \infty)', r'\boxed{(3,\infty)\cup(-\infty,2)}', 1),
        (r'\left( 3, \frac{\pi}{2} \right)', r'\boxed{(3, \pi/2)}', 1),
        ('(1/2, 3)', '(0.5, 3)', 1),
        (r'x \in [-2,7]', r'\boxed{[-2,7]}', 1),
        (r'\{1,2\}', r'\boxed{1,2}', 1),
        ('(1,2)', r'\boxed{1,2}', 0),
        (r'\emptyset', '\\boxed{\u2205}', 1),
        ('(1,2)', 'The point is (1, 2).', 1),
        ('2', '(1,2)', 0),
        (r'\{1,2\}', '{1, 2}', 1),
        ('7', '(7)', 1),
        ('(1,2,3)', '(1,2)', 0),
        ('[0,1]', r'\boxed{[0;1]}', 1),
        (r'\{3\}', r'\boxed{3}', 0),
    ],
    'tags and objects': [
        ('42', '<answer>42</answer>', 1),
        ('42', '<think>5</think><answer>42</answer>', 1),
        ('42', '<answer>42', 1),
        ('42', '<Answer>\n42 apples\n</Answer>', 1),
        ('42', '<final_answer>x = 42</final_answer> of 50', 1),
        ('42', r'<answer>\boxed{42}</answer>', 1),
        ('42', '<answer>41</answer> no, <answer>42</answer>', 1),
        ('41', '<answer>41</answer> no, <answer>42</answer>', 0),
        ('7', r'\boxed{7} <answer>42</answer>', 0),
        ('42', '42 <answer></answer>', 1),
        ('Paris', '<answer>Paris</answer>', 1),
        ('<answer>42</answer>', '42', 1),
        ('42', '{"answer": 42}', 1),
        ('42', '{"answer": "42", "n": 3}', 1),
        ('3', '{"answer": "42", "n": 3}', 0),
        ('42', "{'final_answer': '42 cm'}", 1),
        ('42', '```json\n{"answer": 42}\n```', 1),
        ('{"answer": 42}', '42', 1),
        ('{"ground_truth": "Paris"}', 'Paris', 1),
        ('["42"]', '42', 1),
        ("['Paris']", 'Paris', 1),
        ('["a"]', '["a"]', 1),
        ('["a", "b"]', '["a", "b"]', 1),
        ('42', 'Answer is:\n\\[\n42\n\\]', 1),
        ('A: 42', 'The total is 42', 1),
        ('42', 'A: 42', 1),
        ('Answer: seven', 'seven', 1),
        ('The answer is Paris.', 'Paris', 1),
    ],
    'remarks and labels': [
        ('120', 'The answer is 120 minutes (2 hours).', 1),
        ('2', 'The answer is 120 minutes (2 hours).', 0),
        ('17', '17 (16.5 is rounded up)', 1),
        ('120', 'It takes 120 minutes (2 hours).', 1),
        ('18', 'She earned $18 (3 x 6).', 1),
        ('18', 'So the total is 18 (12+6).', 1),
        ('7', 'Therefore, the answer is $7$ (B).', 1),
        ('7', '7 (mod 12)', 0),
        ('(3, 4)', 'The 2 lines meet in (3, 4).', 1),
        ('7', 'Seven (7)', 1),
        ('15', 'On day 3, he ate the rest (15 cookies).', 1),
        ('7', 'Step 1: 3+4=7\nStep 2: done', 1),
        ('2', 'Step 1: 3+4=7\nStep 2: done', 0),
        ('7', '**Step 1:** 3+4=7\n**Step 2:** Check it.', 1),
        ('42', 'Question 2: 42', 1),
    ],
    'choices': [
        ('C', 'Option C', 1),
        ('C', 'The answer is option C', 1),
        ('C', 'The answer is C because A is wrong', 1),
        ('C', 'Answer: C) Paris', 1),
        ('A', 'The answer is C because A is wrong', 0),
        ('C', 'The correct option is C.', 1),
        ('(C)', 'I choose option **C**.', 1),
        ('Answer: C', 'C', 1),
        ('C', '<answer>(C)</answer>', 1),
        ('I', 'I think so', 0),
        ('A', 'The answer is A, B', 0),
        ('C', 'c', 0),
    ],
    'negative in words': [
        ('-7', 'minus 7', 1),
        ('-7', 'The answer is negative 7.', 1),
        ('7', 'The answer is negative 7.', 0),
        ('-7', 'It is minus 7.', 1),
        ('7', 'It is negative 7.', 0),
        ('7', 'The answer is minus 7', 0),
        ('-5', 'negative 5 degrees', 1),
        ('-1/2', r'negative \frac12', 1),
        ('3', 'He ate 10 minus 3', 1),
        ('-3', 'He ate 10 minus 3', 0),
        ('7', '10 minus 3 = 7', 1),
    ],
    'decoration': [
        ('42', '=> 42', 1),
        ('42', '\u2192 42', 1),
        ('42', '\u2234 42', 1),
        ('-3', '-> -3', 1),
        ('-3', '-> 3', 0),
        ('3', 'x \u2192 3', 0),
        ('42', r'\boxed{\textcolor{red}{42}}', 1),
        ('42', r'\boxed{\color{red} 42}', 1),
        ('42', r'\boxed{\underline{42}}', 1),
        ('42', r'\boxed{\bf 42}', 1),
        ('1/2', r'\boxed{1 \over 2}', 1),
        ('42', '42 \u2713', 1),
        ('42', '\u2705 42', 1),
        ('42', '42 \U0001f44d', 1),
        ('\u2713', '\\boxed{\u2717}', 0),
        ('7', '7\ufe0f\u20e3', 1),
        ('42', '\u00ab42\u00bb', 1),
        ('42', '\u7b54\u6848\uff1a42', 1),
        ('42', '\u20a942', 1),
        ('\u20a942', '$42', 0),
        ('-\\infty', '\u2212\u221e', 1),
        (r'\log_2 8', r'\log_{2} 8', 1),
        (r'\log_2 8', r'\log_{28}', 0),
        ('caf\u00e9', 'cafe\u0301', 1),
        ('\u041c\u041e\u0421\u041a\u0412\u0410', '\u041c\u043e\u0441\u043a\u0432\u0430', 1),
    ],
    'mixed numbers': [
        ('1.5', r'\boxed{1\frac{1}{2}}', 1),
        ('3/2', '1 1/2', 1),
        ('3/2', 'He ate 1 1/2 pizzas.', 1),
        ('1.5', '1\xbd', 1),
        ('5.5', '11/2', 1),
        ('11/2', '1 1/2', 0),
        ('-1.5', r'\boxed{-1\frac12}', 1),
        (r'137 \frac{1}{2}', '137.5', 1),
    ],
}


@pytest.mark.parametrize('kind', TABLE)
def test_verdicts(kind):
    solutions, completions, verdicts = zip(*TABLE[kind], strict=True)
    marks = accuracy(['p'] * len(solutions), completions, solutions)
    wrong = [
        row
        for row, mark, verdict in zip(TABLE[kind], marks, verdicts, strict=True)
        if mark != verdict
    ]
    assert not wrong


def test_the_table_is_large_and_has_both_verdicts():
    assert sum(map(len, TABLE.values())) >= 380
    for rows in TABLE.values():
        assert {verdict for _, _, verdict in rows} == {0, 1}


def test_answers_are_equal_both_ways_round():
    answers = [
        extract(completion, 'answer') or '' for rows in TABLE.values() for _, completion, _ in rows
    ]
    for a, b in itertools.pairwise(
        answers + [solution for rows in TABLE.values() for solution, _, _ in rows]
    ):
        assert same_answer(a, a) and same_answer(a, b) == same_answer(b, a)


# Real solutions

FORMULA = (
    r'\boxed{%s}',
    r'Hence $\boxed{ %s }$.',
    '#### %s',
    'So we get it. The answer is $%s$.',
    '**Final Answer:** $%s$',
    r'\(\fbox{%s}\)',
    'Thus it is\n\\[\\boxed{%s}\\]\n',
    r'The final answer is $\boxed{%s}$. I hope it is correct.',
    'Therefore, $%s$.',
)
NUMBER = (
    *FORMULA,
    '%s',
    'The answer is %s.',
    'so it costs %s.',
    'It is %s',
    '3 + 4 = %s',
    'they have %s apples in all.',
    '**%s**',
    'Answer: %s',
    'First 3, then 5. So the total is %s, I think.',
    'He needs 2 steps.\nThe total is %s',
)


def gsm8k(folder):
    return [
        json.loads(line)['answer'].split('#### ')[1]
        for line in (folder / 'gsm8k' / 'test.jsonl').read_text().splitlines()
    ]


def svamp(folder):
    return [row['Answer'] for row in json.loads((folder / 'svamp' / 'SVAMP.json').read_text())]


def math500(folder):
    return [
        json.loads(line)['answer']
        for line in (folder / 'math500' / 'test.jsonl').read_text().splitlines()
    ]


def math_train(folder):
    return [
        row['answer']
        for row in json.loads((folder / 'math_train' / 'math.json').read_text())
        if row['answer']
    ]


SETS = {gsm8k: NUMBER, svamp: NUMBER, math500: FORMULA, math_train: FORMULA}


def golds_of(data_set, folder):
    """Different solutions of a data set, at most 700 of them."""
    if not (folder / data_set.__name__).is_dir():
        pytest.skip(f'{folder} has no {data_set.__name__}')
    golds = sorted(
        {text.strip() for text in map(read_solution, data_set(folder)) if text is not None}
    )
    return random.Random(0).sample(golds, min(700, len(golds)))


@pytest.mark.parametrize('data_set', SETS)
def test_real_solutions_are_right_where_they_are_given(data_set, data_dir):
    golds = golds_of(data_set, data_dir)
    assert len(golds) > 80
    for form in SETS[data_set]:
        completions = [form.replace('%s', gold) for gold in golds]
        marks = accuracy(['p'] * len(golds), completions, golds)
        assert [text for text, mark in zip(completions, marks, strict=True) if mark != 1] == []


NOISE = re.compile(
    r'\\(?:left|right|text|mbox|textnormal|mathbf|!|,|;| )|[\s{}$,.]|\\\$|\\%|\^\\circ|\^\{\\circ\}'
)
EVALUATED = (
    (r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}', r'((\1)/(\2))'),
    (r'\\[dt]?frac\s*(\d)\s*\{?(\d+)\}?', r'((\1)/(\2))'),
    (r'\\[dt]?frac\s*\{(\d+)\}\s*(\d)', r'((\1)/(\2))'),
    (r'^(-?\d+)\s*\(\(', r'\1+(('),
)


def evaluated(gold):
    """The number that a solution is, by other means than those that are tested; None where it is
    none."""
    text = re.sub(
        r'^.*=|\\(?:text|textnormal|mbox)\{[^{}]*\}(\^2)?|\^\{?\\circ\}?|\\[!$%]|,\s*(?=\d{3})|\s+$',
        '',
        gold,
    )
    for pattern, by in EVALUATED:
        text = re.sub(pattern, by, text.strip())
    if not re.fullmatch(r'[\d.+*/() -]+', text) or re.match(r'0\d', text):
        return float(text) if text.isdigit() else None
    try:
        return float(eval(text))  # of digits and operators only
    except SyntaxError:
        return None


@pytest.mark.parametrize('data_set', SETS)
def test_no_two_different_real_solutions_are_equal(data_set, data_dir):
    equal = [
        (a, b)
        for a, b in itertools.combinations(golds_of(data_set, data_dir), 2)
        if same_answer(a, b)
    ]
    for a, b in equal:
        x, y = evaluated(a), evaluated(b)
        if x is None or y is None:
            bare = [
                sorted(NOISE.sub('', text.replace('dfrac', 'frac').replace('tfrac', 'frac')))
                for text in (a, b)
            ]
            # the same characters, apart from spaces, braces and the order of a list
            assert bare[0] == bare[1], (a, b)
        else:
            shares = {1, 100} if '%' in a or '%' in b else {1}
            assert any(
                math.isclose(x, y * share) or math.isclose(x * share, y) for share in shares
            ), (a, b)


def test_worked_solutions_hold_their_answer(data_dir):
    if not (data_dir / 'math500').is_dir():
        pytest.skip(f'{data_dir} has no math500')
    rows = [
        json.loads(line) for line in (data_dir / 'math500' / 'test.jsonl').read_text().splitlines()
    ]
    boxed = [rf'\boxed{{{row["answer"]}}}' for row in rows]
    assert accuracy(['p'] * len(rows), boxed, [row['solution'] for row in rows]) == [1.0] * len(
        rows
    )
    shifted = accuracy(['p'] * len(rows), boxed[1:] + boxed[:1], [row['solution'] for row in rows])
    assert sum(shifted) < 20
    questions = [
        json.loads(line)['answer']
        for line in (data_dir / 'gsm8k' / 'test.jsonl').read_text().splitlines()
    ]
    assert accuracy(['p'] * len(questions), questions, questions) == [1.0] * len(questions)


# Hostile texts: a million characters, which a reader that is not linear would read for hours

MILLION = 1_000_000
HOSTILE = {
    'boxes': r'\boxed{',
    'braces': '{',
    'closing braces': '}',
    'fractions': r'\frac{',
    'text mode': r'\text{',
    'digits': '7',
    'commas': '1,',
    'statements': 'the answer is ',
    'answers': 'answer',
    'hashes': '#### ',
    'headings': '#### x\n',
    'stars': '**',
    'bold': '**7** ',
    'dollars': '$',
    'money': '$1 ',
    'spaces': ' ',
    'lines': '7\n',
    'brackets': '(',
    'tuples': '(1,',
    'powers': '2^',
    'thoughts': '<think>',
    'ends of thoughts': '</think>',
    'minus': '-',
    'ranges': '1-',
    'halves': '\u00bd',
    'superscripts': '\u00b2',
    'lists': '1 and ',
    'backslashes': '\\',
    'math': r'\(1',
    'display': r'\[',
    'sentences': 'It is 7. ',
    'capital': '\u0130answer is 3',
    'underscores': '__',
    'tags': '<answer>',
    'ends of tags': '</answer>',
    'remarks': ' (two)',
    'quotes': 'answer": "7',
    'pictures': '\u2713',
    'objects': '{"answer": ',
    'negatives': 'negative 7 ',
    'steps': 'step 7: ',
    'options': 'option C ',
    'labels': 'a: ',
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_texts_are_read_in_one_pass(kind):
    text = HOSTILE[kind] * (MILLION // len(HOSTILE[kind]))
    answer = extract(text, 'answer')
    assert answer is None or answer in text or kind in ('halves', 'superscripts', 'negatives')
    assert (
        not same_answer(text, '8') and not same_answer(text[:1000], '8') and same_answer(text, text)
    )


def test_a_million_closed_boxes():
    nested = r'\boxed{' * 100_000 + '5' + '}' * 100_000
    assert extract(nested, 'answer') == '5'
    assert extract(r'\boxed{4}' + r'\boxed{' * 100_000, 'answer') == '4'


@pytest.mark.parametrize(
    'text', ['1e999999', '1e999999999999', '-1e-999999', '9' * 900, f'0.{"0" * 900}1']
)
def test_numbers_that_are_too_large_to_compute_with(text):
    assert same_answer(text, text) and same_answer(f'{text} cm', text)
    assert (
        not same_answer(text, '1')
        and not same_answer(text, '0')
        and not same_answer(text, f'-{text}' if text[0] != '-' else text[1:])
    )
    assert accuracy(['p'], [rf'\boxed{{{text}}}'], [text]) == [1.0]


def test_an_exponent_that_no_integer_should_hold_is_compared_as_it_is_written():
    text = '1e' + '9' * 500
    assert (
        same_answer(text, text) and not same_answer(text, f'{text}9') and not same_answer(text, '1')
    )


PIECES = [
    '\\boxed{',
    '}',
    '{',
    '\\frac',
    '1',
    '2',
    '12',
    ',',
    '.',
    '$',
    '\\$',
    '\\%',
    '%',
    '-',
    '\u2212',
    '(',
    ')',
    '[',
    ']',
    '\\{',
    '\\}',
    'x',
    '=',
    'e',
    '^',
    '_',
    '\\sqrt',
    '\\pm',
    '\\cup',
    'and ',
    ' ',
    '\n',
    '**',
    '#### ',
    'answer is ',
    'Answer:',
    '\\text{',
    ' cm',
    '\u00bd',
    '\u00b2',
    '\u0667',
    '\ud800',
    '\x00',
    '\u202e',
    '/',
    '0',
    '10^',
    '*',
    '\\times',
    '\\infty',
    '#',
    '"',
    "'",
    'million',
    'percent',
    '</think>',
    '\\fbox',
    '\\boxed',
    '|',
    '<',
    '!',
    '?',
    ';',
    ':',
    '\\left',
    '\\right',
    '&',
    '\\\\',
]


def test_no_text_raises_and_equality_is_symmetric():
    rng = random.Random(0)
    for _ in range(3000):
        text, other = (''.join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(2))
        extract(text, 'answer')
        assert same_answer(text, text) and same_answer(text, other) == same_answer(other, text)
        try:
            solution = read_solution(text)
        except UserError:
            continue
        assert solution is None or isinstance(solution, str)
